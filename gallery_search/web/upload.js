// page.py fills in the limits.
const input = element.querySelector("input"), alert = element.querySelector("[role=alert]");
input.addEventListener("click", () => { input.value = ""; });  // allows the same file again
const show = (text) => { alert.hidden = !text; alert.textContent = text; };
input.addEventListener("change", () => {
  const file = input.files[0];
  if (!file) return;
  if (file.size > MAX_BYTES) {
    input.value = "";
    return show("The image is larger than MAX_MIB MiB; crop the person.");
  }
  show("");
  const reader = new FileReader();
  reader.onerror = () => show("The file cannot be read.");
  reader.onload = () => {
    trigger("upload", { name: file.name, content: reader.result.split(",")[1] || "" });
  };
  reader.readAsDataURL(file);
});
