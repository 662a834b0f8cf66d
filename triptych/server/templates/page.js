// An image to choose, to drop or to paste. Gradio calls this with `element`, `props` and `trigger`.
// The image stays in the browser as a data URL, and goes to the server with each question about it:
// nothing is stored there. Gradio's own image input would write it to a folder of the server.
const input = element.querySelector("input[type=file]");
const place = element.querySelector("label");
const note = element.querySelector(".tt-pick-note");
let latest = 0;

function take(file) {
  note.textContent = "";
  if (!file) return;
  if (file.size > props.max_bytes) {
    const [has, most] = [file.size, props.max_bytes].map((n) => (n / 2 ** 20).toFixed(1));
    note.textContent = `${file.name} has ${has} MiB, and at most ${most} MiB are taken: choose a smaller file.`;
    return;
  }
  const turn = ++latest;
  const reader = new FileReader();
  reader.onerror = () => { note.textContent = `${file.name} cannot be read.`; };
  reader.onload = () => {
    if (turn !== latest) return; // another file was chosen since
    props.value = { data: reader.result, name: file.name };
    trigger("upload");
  };
  reader.readAsDataURL(file);
}

input.addEventListener("change", () => { take(input.files[0]); input.value = ""; });
for (const kind of ["dragenter", "dragover"])
  place.addEventListener(kind, (event) => { event.preventDefault(); place.classList.add("tt-over"); });
for (const kind of ["dragleave", "drop"])
  place.addEventListener(kind, () => place.classList.remove("tt-over"));
place.addEventListener("drop", (event) => { event.preventDefault(); take(event.dataTransfer.files[0]); });
if (props.pastes)
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
    if (file) take(file);
  });
