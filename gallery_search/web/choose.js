element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-key]");
  if (!button) return;
  document.getElementById("crop").value = "";  // no longer the query
  trigger("select", { key: button.dataset.key });
});
