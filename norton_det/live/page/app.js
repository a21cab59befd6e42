// Frames of the camera or a file go to the server one at a time, and are shown with what comes back.

const LONGEST = 960; // pixels of a frame's long side on its way to the server
const QUALITY = 0.85; // of the JPEG
const KEPT = 120; // frames in the graph
const COCO_KEYPOINTS = 17; // that the skeleton is of
const COLORS = ["#4dd0a0", "#6ea8ff", "#ff9f5a", "#e678d8"]; // of detectors
const CLASS_COLORS = ["#a351fb", "#ff4040", "#ffd23f", "#3fd0ff", "#76ff7a", "#ff8fd8", "#ff9d3c", "#9fb0ff"];
const BOTH = " + ";

const at = (id) => document.getElementById(id);
const video = at("video");
const state = {
  socket: null, retry: 0,
  number: 0, sent: null, waiting: 0, // the frame in flight, and how many answers to it are to come
  source: 0, url: null, picture: null, paused: false, // which source it is; a still one has a picture
  dirty: false, // whether the picture is to be seen anew
  models: [], skeleton: [], chosen: [], views: new Map(), stats: new Map(), last: 0,
};

// --- connection ------------------------------------------------------------------------------------------------------

function connect() {
  setState("connecting", "connecting");
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const socket = new WebSocket(`${scheme}://${location.host}/frames`);
  state.socket = socket;
  socket.onopen = async () => {
    state.waiting = 0;
    state.sent = null;
    try {
      await loadModels();
    } catch {
      socket.close();
      return;
    }
    if (state.socket !== socket || socket.readyState !== WebSocket.OPEN) return; // refused meanwhile
    setState("ready", "connected");
    showError("");
    look();
  };
  socket.onmessage = (event) => {
    state.retry = 0;
    receive(JSON.parse(event.data));
  };
  socket.onclose = (event) => {
    if (state.socket !== socket) return;
    state.waiting = 0;
    const seconds = Math.min(8, 0.5 * 2 ** state.retry++);
    const why = event.code === 1009 ? "The frame was too large" : event.reason;
    setState("gone", `not connected, trying again in ${seconds} s`);
    showError(why ? `${why}.` : "The server has stopped, or cannot be reached. "
      + "Start it again with norton-det serve; this page goes on by itself.");
    setTimeout(connect, 1000 * seconds);
  };
}

async function loadModels() {
  const answer = await (await fetch("/models")).json();
  state.models = answer.models;
  state.skeleton = answer.skeleton;
  const names = answer.models.map((each) => each.name);
  const choices = names.length > 1 ? [...names, names.slice(0, 2).join(BOTH)] : names;
  const select = at("model");
  const before = select.value;
  select.replaceChildren(...choices.map((name) => new Option(name, name)));
  select.value = choices.includes(before) ? before : choices.at(-1);
  choose();
}

function choose() {
  const value = at("model").value;
  const names = state.models.map((each) => each.name);
  state.chosen = names.includes(value) ? [value] : names.slice(0, 2);
  const figures = state.chosen.map((name) => {
    const found = state.views.get(name) ?? makeView(name);
    state.views.set(name, found);
    return found.figure;
  });
  at("views").replaceChildren(...figures);
  state.stats.clear();
}

// Tells the server what is wished for; a still picture is seen anew.
function look() {
  state.dirty = true;
  sendWish();
  pump();
}

function sendWish() {
  const threshold = Number(at("threshold").value);
  at("shown-threshold").value = threshold.toFixed(2);
  if (state.socket?.readyState === WebSocket.OPEN && state.chosen.length) {
    state.socket.send(JSON.stringify({ models: state.chosen, threshold }));
  }
}

// --- frames out ------------------------------------------------------------------------------------------------------

const scratch = document.createElement("canvas");

function sizeOfSource() {
  if (state.picture) return [state.picture.width, state.picture.height];
  return [video.videoWidth, video.videoHeight];
}

function pump() {
  const ready = state.picture ? state.dirty : video.readyState >= 2 && !video.paused;
  const open = state.socket?.readyState === WebSocket.OPEN;
  if (!ready || !open || state.waiting || !state.chosen.length) return;
  const [width, height] = sizeOfSource();
  if (!width) return;
  const scale = Math.min(1, LONGEST / Math.max(width, height));
  scratch.width = Math.max(1, Math.round(width * scale));
  scratch.height = Math.max(1, Math.round(height * scale));
  scratch.getContext("2d").drawImage(state.picture ?? video, 0, 0, scratch.width, scratch.height);
  state.dirty = false;
  state.waiting = state.chosen.length;
  const number = state.sent = ++state.number;
  const socket = state.socket;
  scratch.toBlob(async (blob) => {
    const bytes = new Uint8Array(4 + (blob?.size ?? 0));
    new DataView(bytes.buffer).setUint32(0, number);
    if (blob) bytes.set(new Uint8Array(await blob.arrayBuffer()), 4);
    if (number === state.sent && socket.readyState === WebSocket.OPEN) socket.send(bytes); // else of a source before
  }, "image/jpeg", QUALITY);
}

// --- answers in ------------------------------------------------------------------------------------------------------

function receive(answer) {
  if (answer.error) showError(answer.error);
  if (answer.frame !== state.sent) return; // of a source or connection before
  if (answer.error) {
    state.waiting = 0;
    return;
  }
  state.waiting = Math.max(0, state.waiting - 1);
  const view = state.views.get(answer.model);
  if (view) {
    view.objects = answer.objects;
    draw(view);
  }
  const now = performance.now();
  const stats = state.stats.get(answer.model) ?? { times: [], shown: [] };
  stats.times = [...stats.times, answer.ms].slice(-KEPT);
  stats.shown = [...stats.shown, now].slice(-30);
  stats.objects = answer.objects.length;
  state.stats.set(answer.model, stats);
  if (now - state.last > 250 || state.picture) showStats(now);
  pump();
}

// --- drawing ---------------------------------------------------------------------------------------------------------

function makeView(name) {
  const figure = document.createElement("figure");
  const canvas = document.createElement("canvas");
  const caption = document.createElement("figcaption");
  canvas.dataset.model = name;
  caption.textContent = name;
  figure.append(caption, canvas);
  return { figure, canvas, caption, objects: [] };
}

// The frame that was sent, with what was found in it: never boxes of one frame over another.
function draw(view) {
  view.canvas.width = scratch.width;
  view.canvas.height = scratch.height;
  const context = view.canvas.getContext("2d");
  context.drawImage(scratch, 0, 0);
  drawObjects(context, view.objects, scratch.width, scratch.height);
  view.canvas.dataset.objects = view.objects.length;
}

function drawObjects(context, objects, width, height) {
  const unit = Math.max(1, Math.min(width, height) / 400);
  context.lineWidth = 2 * unit;
  context.font = `${Math.round(13 * unit)}px system-ui, sans-serif`;
  context.textBaseline = "top";
  for (const object of objects) {
    const color = CLASS_COLORS[object.label % CLASS_COLORS.length];
    const [left, top, right, bottom] = object.box.map((value, index) => value * (index % 2 ? height : width));
    context.strokeStyle = color;
    context.fillStyle = color;
    for (const outline of object.mask ?? []) {
      context.globalAlpha = 0.45;
      context.beginPath();
      for (let i = 0; i < outline.length; i += 2) context.lineTo(outline[i] * width, outline[i + 1] * height);
      context.fill();
      context.globalAlpha = 1;
    }
    context.strokeRect(left, top, right - left, bottom - top);
    drawKeypoints(context, object.keypoints ?? [], width, height, unit);
    const text = `${object.name} ${Math.round(100 * object.score)}%`;
    const room = context.measureText(text).width + 6 * unit;
    const line = 18 * unit;
    const y = Math.max(0, top - line);
    context.fillStyle = color;
    context.fillRect(left, y, room, line);
    context.fillStyle = "#000";
    context.fillText(text, left + 3 * unit, y + 2 * unit);
  }
}

function drawKeypoints(context, points, width, height, unit) {
  const seen = points.map(([x, y, score]) => (score > 0.05 ? [x * width, y * height] : null));
  context.strokeStyle = "#3dff88";
  const skeleton = points.length === COCO_KEYPOINTS ? state.skeleton : [];
  for (const [first, second] of skeleton) {
    if (!seen[first] || !seen[second]) continue;
    context.beginPath();
    context.moveTo(...seen[first]);
    context.lineTo(...seen[second]);
    context.stroke();
  }
  context.fillStyle = "#ff3b3b";
  for (const point of seen) {
    if (!point) continue;
    context.beginPath();
    context.arc(point[0], point[1], 2.5 * unit, 0, 2 * Math.PI);
    context.fill();
  }
}

function fps(moments) {
  if (moments.length < 2) return 0;
  return (1000 * (moments.length - 1)) / (moments.at(-1) - moments[0]);
}

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1] ?? 0;

function showStats(now) {
  state.last = now;
  const rows = state.models.filter((each) => state.stats.has(each.name)).map((each) => {
    const stats = state.stats.get(each.name);
    const ms = median(stats.times.slice(-30));
    const rate = fps(stats.shown);
    const shown = state.picture || !rate ? "-" : rate.toFixed(1);
    const row = document.createElement("tr");
    row.dataset.model = each.name;
    const color = COLORS[state.models.indexOf(each) % COLORS.length];
    const cells = [each.name, each.macs ? `${(each.macs / 1e9).toFixed(1)} G` : "-",
      each.params ? `${(each.params / 1e6).toFixed(1)} M` : "-", ms.toFixed(0), (1000 / ms).toFixed(1), shown,
      stats.objects];
    for (const [index, cell] of cells.entries()) row.insertCell().textContent = index ? cell : "";
    const mark = document.createElement("i");
    mark.style.background = color;
    row.cells[0].append(mark, `${each.name} (${each.engine} ${each.precision})`);
    const view = state.views.get(each.name);
    if (view) view.caption.textContent = `${each.name}: ${(1000 / ms).toFixed(1)} FPS model, ${shown} FPS shown`;
    return row;
  });
  at("speeds").replaceChildren(...rows);
  drawGraph();
}

function drawGraph() {
  const canvas = at("graph");
  canvas.width = canvas.clientWidth;
  const context = canvas.getContext("2d");
  const all = [...state.stats.values()].flatMap((stats) => stats.times);
  const most = Math.max(20, ...all) * 1.1;
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = "#a3adbd";
  context.strokeStyle = "#3a4150";
  context.font = "12px system-ui, sans-serif";
  for (const share of [0.5, 1]) {
    const y = canvas.height - (canvas.height - 4) * share / 1.1;
    context.beginPath();
    context.moveTo(0, y);
    context.lineTo(canvas.width, y);
    context.stroke();
    context.fillText(`${Math.round(most / 1.1 * share)} ms`, 4, y - 3 > 10 ? y - 3 : y + 12);
  }
  state.models.forEach((each, index) => {
    const times = state.stats.get(each.name)?.times ?? [];
    context.strokeStyle = COLORS[index % COLORS.length];
    context.lineWidth = 2;
    context.beginPath();
    times.forEach((ms, i) => {
      const x = canvas.width - (times.length - 1 - i) * (canvas.width / KEPT);
      context.lineTo(x, canvas.height - (canvas.height - 4) * ms / most);
    });
    context.stroke();
  });
}

// --- sources ---------------------------------------------------------------------------------------------------------

async function startCamera() {
  stopSource();
  const source = state.source;
  try {
    if (!navigator.mediaDevices) throw new Error("cameras need https, or a page from localhost");
    const stream = await navigator.mediaDevices.getUserMedia({
      video: { width: { ideal: 640 }, height: { ideal: 480 }, facingMode: { ideal: "environment" } }, audio: false,
    });
    if (source !== state.source) { // a file was opened meanwhile
      stream.getTracks().forEach((track) => track.stop());
      return;
    }
    video.srcObject = stream;
    for (const track of stream.getTracks()) {
      track.onended = () => {
        stopSource();
        showError("The camera has gone. Start it again.");
      };
    }
    await play();
  } catch (error) {
    showError(error.name === "NotAllowedError" ? "The camera was not allowed; allow it beside the address."
      : `No camera: ${error.message}`);
  }
}

async function openFile(file) {
  if (!file) return;
  stopSource();
  const source = state.source;
  try {
    if (file.type.startsWith("video/")) {
      state.url = URL.createObjectURL(file);
      video.src = state.url;
      video.loop = true;
      await play();
    } else {
      const picture = await createImageBitmap(file);
      if (source !== state.source) return; // another one was opened meanwhile
      state.picture = picture;
      started();
    }
  } catch {
    if (source === state.source) showError(`${file.name} is no picture or video that this browser can show.`);
  }
}

async function play() {
  await video.play();
  started();
}

function started() {
  showError("");
  at("hint").hidden = true;
  at("pause").disabled = Boolean(state.picture);
  look();
}

// The frame that is shown becomes a still picture; the film or camera goes on afterwards.
async function pause() {
  if (state.paused) {
    state.picture?.close();
    state.picture = null;
    state.stats.clear();
    video.play();
  } else {
    state.picture = await createImageBitmap(video);
    video.pause();
    look();
  }
  state.paused = Boolean(state.picture);
  at("pause").textContent = state.paused ? "Go on" : "Pause";
}

function stopSource() {
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.pause();
  video.srcObject = null;
  video.removeAttribute("src");
  video.load();
  state.picture?.close();
  state.picture = null;
  if (state.url) URL.revokeObjectURL(state.url);
  state.url = null;
  state.source++;
  state.sent = null;
  state.waiting = 0;
  state.paused = false;
  at("pause").textContent = "Pause";
  at("pause").disabled = true;
  state.stats.clear();
}

function tick() {
  if (!state.picture) pump();
  requestAnimationFrame(tick);
}

// --- page ------------------------------------------------------------------------------------------------------------

function setState(name, text) {
  at("state").dataset.state = name;
  at("state").textContent = text;
}

function showError(text) {
  at("error").textContent = text;
  at("error").hidden = !text;
}

at("camera").onclick = startCamera;
at("file").onchange = (event) => {
  openFile(event.target.files[0]);
  event.target.value = "";
};
at("pause").onclick = pause;
at("model").onchange = () => {
  choose();
  look();
};
at("threshold").oninput = look;
connect();
tick();
