// Photos to search with: chosen, dropped or pasted, made small, and kept while the page is open.

// The service makes larger ones as small itself.
const SIDE = 1024;
const kept = new Map();

// What is sent: no larger than the service needs. What a browser cannot read is sent as it is, so that the service says what is wrong.
const reduced = async (file) => {
  const bitmap = await createImageBitmap(file).catch(() => null);
  const scale = bitmap ? SIDE / Math.max(bitmap.width, bitmap.height) : 1;
  if (scale >= 1) return file;
  const canvas = Object.assign(document.createElement("canvas"), { width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale) });
  const brush = canvas.getContext("2d");
  brush.fillStyle = "#fff";
  brush.fillRect(0, 0, canvas.width, canvas.height);
  brush.imageSmoothingQuality = "high";
  brush.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob((small) => done(small ?? file), "image/jpeg", 0.92));
};

// Its name in addresses of this page; elsewhere it says nothing.
const keep = async (file) => {
  const name = Date.now().toString(36);
  kept.set(name, { file: await reduced(file), shown: URL.createObjectURL(file) });
  return name;
};

export const photoOf = (name) => kept.get(name);

// An address with its parameters as a form, as `fetch` takes it.
export const asForm = (address, name) => {
  const [path, parameters] = address.split("?");
  const body = new FormData();
  for (const [parameter, value] of new URLSearchParams(parameters)) body.set(parameter, value);
  body.set("image", kept.get(name).file, "photo");
  return [path, { method: "POST", body }];
};

export const whenChosen = (input, take) => {
  const first = async (files) => {
    if (files?.length) take(await keep(files[0]));
  };
  input.addEventListener("change", () => first(input.files).then(() => { input.value = ""; }));
  addEventListener("dragover", (event) => event.dataTransfer?.types.includes("Files") && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!event.dataTransfer?.files.length) return;
    event.preventDefault();
    first(event.dataTransfer.files);
  });
  addEventListener("paste", (event) => first([...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith("image/"))));
};
