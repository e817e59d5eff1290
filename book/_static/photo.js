// The page for a reader's own photos: a trained network in the browser, with ONNX Runtime Web. Nothing is sent anywhere. The runtime
// and the network are loaded with the first photo; `web/networks.json` says what there is and how large it is.

const LARGEST = 1024 * 1024; // pixels: more would need more memory than a phone's browser gives
const LEAST = 33; // pixels on a side that the networks need
const SIMD = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11]);
const MB = bytes => (bytes / 1e6).toFixed(1);

class Said extends Error {} // a message for the reader

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// A file as bytes; tells how far it is. A file that is shorter than it should be did not arrive whole.
async function download(url, bytes, tell) {
  const parts = [];
  let got = 0;
  try {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`status ${response.status}`);
    for (const reader = response.body.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      tell(got += value.length);
    }
  } catch (error) {
    throw new Said(`${url.split("/").pop()} did not arrive (${error.message}). Choose the photo again to retry.`);
  }
  if (got !== bytes) throw new Said(`${url.split("/").pop()} did not arrive whole: ${got} of ${bytes} bytes. Choose the photo again to retry.`);
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

class Networks {
  constructor(folder, listed, progress) {
    Object.assign(this, { folder, listed, progress, sessions: {} });
  }

  // What loading a network takes, without what is there already.
  bytes(network) {
    const runtime = Object.values(this.listed.runtime).reduce((sum, size) => sum + size, 0);
    return (this.runtime ? 0 : runtime) + (network.name in this.sessions ? 0 : network.bytes);
  }

  async session(network) {
    if (network.name in this.sessions) return this.sessions[network.name];
    const all = this.bytes(network), wasm = "ort-wasm-simd-threaded.wasm";
    let before = 0;
    const get = async (name, bytes) => {
      const file = await download(this.folder + name, bytes, got => this.progress(before + got, all));
      before += bytes;
      return file;
    };
    try {
      if (!this.runtime) {
        const wasmBinary = await get(wasm, this.listed.runtime[wasm]);
        this.runtime = await import(this.folder + "ort.wasm.min.mjs").catch(error => {
          throw new Said(`The runtime did not arrive (${error.message}). Load this page again to retry.`);
        });
        // one thread: more need headers that a plain server does not send; a worker keeps the page alive meanwhile
        Object.assign(this.runtime.env.wasm, { wasmBinary, numThreads: 1, proxy: true });
        this.runtime.env.logLevel = "fatal";
      }
      const file = await get(`${network.name}.onnx`, network.bytes);
      this.progress(all, all);
      return this.sessions[network.name] = await this.runtime.InferenceSession.create(file, { executionProviders: ["wasm"] });
    } finally {
      this.progress();
    }
  }

  // (H, W, 3) bytes -> class of each pixel, and the milliseconds that the network took.
  async classes(network, pixels, width, height) {
    const session = await this.session(network);
    const image = new this.runtime.Tensor("uint8", pixels, [height, width, 3]);
    const start = performance.now();
    const { classes } = await session.run({ image });
    return { classes: classes.data, ms: performance.now() - start };
  }
}

async function decoded(source, name) {
  const image = await createImageBitmap(source, { colorSpaceConversion: "none" }).catch(() => {
    throw new Said(`${name} is not an image that this browser can read. Take a JPEG, PNG or WebP file.`);
  });
  if (Math.min(image.width, image.height) < LEAST) throw new Said(`${image.width}x${image.height} pixels are too few: each side needs ${LEAST}.`);
  return image;
}

// A picture on a canvas, on white where it is transparent, smaller if it has too many pixels; `side`: the shorter side, if it is given.
function draw(image, canvas, side) {
  const { width, height } = image;
  const scale = Math.min(side ? side / Math.min(width, height) : 1, Math.sqrt(LARGEST / (width * height)));
  [canvas.width, canvas.height] = [width, height].map(n => Math.max(LEAST, Math.round(n * scale)));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas;
}

function rgb(canvas) {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const pixels = new Uint8Array((data.length / 4) * 3);
  for (let i = 0, j = 0; i < data.length; i += 4) for (let c = 0; c < 3; c++) pixels[j++] = data[i + c];
  return pixels;
}

// The colours of the classes on a canvas -> how many pixels each class has.
function paint(canvas, classes, colours) {
  const picture = canvas.getContext("2d").createImageData(canvas.width, canvas.height), counts = colours.map(() => 0);
  classes.forEach((k, i) => {
    picture.data.set([...colours[k], 255], 4 * i);
    counts[k]++;
  });
  canvas.getContext("2d").putImageData(picture, 0, 0);
  return counts;
}

function page(place, listed, folder) {
  const status = element("p", { className: "said" }), bar = element("progress", { hidden: true });
  status.setAttribute("role", "status");
  bar.setAttribute("aria-label", "loading the network");
  const networks = new Networks(folder, listed, (got, all) => {
    Object.assign(bar, { hidden: !all, value: got ?? 0, max: all ?? 1 });
    if (all) status.textContent = got < all ? `Loading ${MB(got)} of ${MB(all)} MB …` : "Starting the network …";
  });

  const choice = element("select", {}, ...listed.networks.map(({ name }) => new Option(name)));
  const facts = element("p", { className: "facts" }), samples = element("div", { className: "samples" });
  const file = element("input", { type: "file", accept: "image/*" });
  const camera = element("button", { type: "button", textContent: "Camera" });
  const shot = element("button", { type: "button", textContent: "Take the picture", hidden: true });
  const video = element("video", { muted: true, playsInline: true, hidden: true });
  const photo = element("canvas", { className: "photo" }), over = element("canvas", { className: "over" });
  photo.setAttribute("role", "img");
  const opacity = element("input", { type: "range", min: 0, max: 100, value: 55 });
  const legend = element("ul", { className: "classes" });
  const result = element("div", { className: "result", hidden: true },
    element("div", { className: "layers" }, photo, over), element("label", {}, "classes over the photo ", opacity), legend);
  place.replaceChildren(
    element("div", { className: "controls" }, element("label", {}, "network ", choice), element("label", {}, "your photo ", file), camera),
    samples, facts, video, shot, bar, status, result);

  const network = () => listed.networks.find(({ name }) => name === choice.value);
  let busy = false, last = null;

  async function show(source, name) {
    if (busy) return;
    busy = true;
    try {
      last = [source, name];
      result.hidden = true;
      const image = await decoded(source, name), { classes, colours, side } = network();
      draw(image, photo);
      const seen = draw(image, element("canvas"), side), { width, height } = seen;
      await networks.session(network());
      status.textContent = `Labelling …`;
      const { classes: map, ms } = await networks.classes(network(), rgb(seen), width, height);
      Object.assign(over, { width, height });
      const counts = paint(over, map, colours);
      const order = classes.map((_, k) => k).filter(k => counts[k]).sort((a, b) => counts[b] - counts[a]);
      legend.replaceChildren(...order.map(k => {
        const swatch = element("i", { ariaHidden: "true" });
        swatch.style.background = `rgb(${colours[k]})`;
        return element("li", {}, swatch, ` ${classes[k]} ${((100 * counts[k]) / map.length).toFixed(1)} %`);
      }));
      photo.setAttribute("aria-label", `${name}, with the classes ${order.map(k => classes[k]).join(", ")}`);
      const size = `${image.width}x${image.height} pixels`;
      const scaled = width === image.width ? size : `${size}, scaled to ${width}x${height} for the network`;
      status.textContent = `${name}: ${scaled}. The network took ${ms.toFixed(0)} ms.`;
      result.hidden = false;
      describe();
    } catch (error) {
      const memory = /memory|allocat/i.test(error.message ?? error);
      status.textContent = error instanceof Said ? error.message
        : memory ? "This browser has too little memory for this photo and network. Take a smaller photo." : `The network could not be run: ${error.message ?? error}`;
    } finally {
      busy = false;
    }
  }

  function describe() {
    const { name, classes, agreement } = network(), more = networks.bytes(network());
    facts.textContent = `${name} knows ${classes.length} classes: ${classes.join(", ")}. `
      + (more ? `The first photo loads ${MB(more)} MB. ` : "It is loaded. ")
      + `Stored in half precision, it gives the same class as rflw predict on ${(100 * agreement).toFixed(2)} % of the samples' pixels.`;
  }

  function offer() {
    samples.replaceChildren("or a drawn sample: ", ...network().samples.map(name => {
      const image = element("img", { src: `${folder}${network().name}-${name}.png`, alt: `Drawn ${name}`, width: 120, height: 90 });
      const button = element("button", { type: "button", className: "sample" }, image);
      button.addEventListener("click", async () => {
        const response = await fetch(image.src).catch(() => null);
        if (response?.ok) show(await response.blob(), `Drawn ${name}`);
        else status.textContent = `The sample ${name} did not arrive.`;
      });
      return button;
    }));
    describe();
  }

  choice.addEventListener("change", () => { offer(); if (last) show(...last); });
  file.addEventListener("change", () => { if (file.files[0]) show(file.files[0], file.files[0].name); file.value = ""; });
  opacity.addEventListener("input", () => { over.style.opacity = opacity.value / 100; });
  over.style.opacity = opacity.value / 100;

  const stop = () => {
    video.srcObject?.getTracks().forEach(track => track.stop());
    video.srcObject = null;
    video.hidden = shot.hidden = true;
  };
  camera.addEventListener("click", async () => {
    if (video.srcObject) return stop();
    try {
      if (!navigator.mediaDevices) throw new Error("browsers give it to pages from https or localhost only");
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      video.hidden = shot.hidden = false;
      await video.play();
      status.textContent = "The picture stays in this browser.";
    } catch (error) {
      stop();
      status.textContent = error.name === "NotAllowedError" ? "The camera was denied. Take a file or a sample, or allow it in the browser."
        : error.name === "NotFoundError" ? "There is no camera here. Take a file or a sample." : `The camera cannot be used: ${error.message}.`;
    }
  });
  shot.addEventListener("click", async () => {
    const frame = element("canvas", { width: video.videoWidth, height: video.videoHeight });
    frame.getContext("2d").drawImage(video, 0, 0);
    stop();
    show(frame, "the picture from the camera");
  });
  offer();
}

document.addEventListener("DOMContentLoaded", async () => {
  const place = document.getElementById("photo");
  if (!place) return;
  const say = text => place.replaceChildren(element("p", { className: "said", role: "status", textContent: text }));
  if (location.protocol === "file:")
    return say("A browser loads no network from a file. Serve the book: run “make serve” and open the address that it prints.");
  if (typeof WebAssembly !== "object" || !WebAssembly.validate(SIMD))
    return say("This browser lacks WebAssembly SIMD, which the network needs. Browsers since 2021, Safari since 2023, have it.");
  const folder = new URL("../web/", location).href;
  try {
    const listed = await (await fetch(folder + "networks.json")).json();
    if (!listed.networks.length) return say("This copy of the book was built without its networks, which need npm's registry.");
    page(place, listed, folder);
  } catch {
    say("The list of networks did not arrive. Load this page again to retry.");
  }
});
