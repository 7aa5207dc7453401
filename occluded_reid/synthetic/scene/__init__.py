"""Background, camera, and how the picture is put together."""
