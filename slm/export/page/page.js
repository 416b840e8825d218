// The page around the network: fills the form, generates, shows.

const $ = (id) => document.getElementById(id);
const about = JSON.parse($("about").textContent);
const tokenizer = new Tokenizer(about.tokens);

// ---- generating -------------------------------------------------------------------------------

let model, run = 0; // a new run, or Stop, ends the one before

function options() {
  const number = (id, otherwise) => ($(id).value === "" ? otherwise : Number($(id).value));
  return {
    temperature: number("temperature", 1),
    topK: number("top_k", 0),
    topP: number("top_p", 1),
    seed: number("seed", 0),
    maxNewTokens: number("max", 300),
  };
}

async function start() {
  const mine = ++run, prompt = $("prompt").value;
  const story = $("story"), decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  story.replaceChildren(Object.assign(document.createElement("b"), { textContent: prompt }));
  hide();
  $("stop").disabled = false;
  $("status").ariaBusy = "true"; // a screen reader waits for the end
  delete document.body.dataset.finished;
  say("reading the prompt …");
  await pause();
  let count = 0, began = performance.now(), paused = began;
  const ids = [tokenizer.endOfText, ...tokenizer.encode(prompt)];
  for (const next of generate(model, ids, options())) {
    if (next) {
      story.append(makeToken(next, decoder));
      count++;
      say(`${count} tokens, ${(1000 * count / (performance.now() - began)).toFixed(0)} per second`);
    }
    if (performance.now() - paused > 16) {
      await pause();
      if (mine !== run) return;
      paused = performance.now();
    }
    if (!count) began = performance.now(); // the first token's time is the prompt's
  }
  story.append(decoder.decode()); // the rest of a character that is incomplete
  finish();
}

const pause = () => new Promise((resolve) => setTimeout(resolve));
const say = (text) => { $("status").textContent = text; };

function finish() {
  run++;
  $("stop").disabled = true;
  $("status").ariaBusy = "false";
  document.body.dataset.finished = "true";
}

// A token of the story, tinted by how improbable the model found it.
function makeToken({ token, logits }, decoder) {
  const probabilities = softmax(logits);
  const element = document.createElement("span");
  element.textContent = decoder.decode(tokenizer.bytes(token), { stream: true });
  element.alternatives = likeliest(logits, 5).map((id) => [id, probabilities[id]]);
  element.chosen = [token, probabilities[token]];
  const surprise = Math.min(1, -Math.log(probabilities[token]) / 5);
  element.style.setProperty("--surprise", `${(60 * surprise).toFixed(0)}%`);
  return element;
}

// ---- the alternatives of a token ----------------------------------------------------------------

let shown = null;

function show(element) {
  shown?.classList.remove("shown");
  shown = element;
  element.classList.add("shown");
  const rows = element.alternatives.slice();
  if (!rows.some(([id]) => id === element.chosen[0])) rows.push(element.chosen);
  $("alternatives").replaceChildren(...rows.map(([id, probability]) => {
    const row = document.createElement("tr");
    const bytes = new TextDecoder().decode(tokenizer.bytes(id));
    const text = id === tokenizer.endOfText ? "end of text" : JSON.stringify(bytes);
    const cells = [text, `${(100 * probability).toFixed(1)} %`];
    row.append(...cells.map((t) => Object.assign(document.createElement("td"), { textContent: t })));
    row.classList.toggle("chosen", id === element.chosen[0]);
    row.style.setProperty("--share", `${100 * probability}%`);
    return row;
  }));
  const card = $("card"), box = element.getBoundingClientRect();
  card.hidden = false;
  const left = Math.min(box.left, document.documentElement.clientWidth - card.offsetWidth - 8);
  const below = box.bottom + 6;
  const fits = below + card.offsetHeight <= document.documentElement.clientHeight;
  card.style.left = `${Math.max(8, left) + scrollX}px`;
  card.style.top = `${(fits ? below : Math.max(8, box.top - card.offsetHeight - 6)) + scrollY}px`;
}

function hide() {
  shown?.classList.remove("shown");
  shown = null;
  $("card").hidden = true;
}

const tokenAt = (event) => (event.target.alternatives ? event.target : null);
$("story").addEventListener("pointerover", (event) => tokenAt(event) && show(tokenAt(event)));
$("story").addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
document.addEventListener("click", (event) => (tokenAt(event) ? show(tokenAt(event)) : hide()));
$("story").addEventListener("blur", hide);
$("story").addEventListener("keydown", (event) => {
  const tokens = [...$("story").querySelectorAll("span")];
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (event.key === "Escape") hide();
  if (!step || !tokens.length) return;
  event.preventDefault();
  const from = shown ? tokens.indexOf(shown) : step > 0 ? -1 : tokens.length;
  show(tokens[Math.max(0, Math.min(tokens.length - 1, from + step))]);
});

// ---- start ----------------------------------------------------------------------------------------

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
$("stop").addEventListener("click", finish);

// index.html#prompt=One+day&temperature=0&max=60&start fills the form, and starts.
const given = new URLSearchParams(location.hash.slice(1));
for (const [name, value] of given) if ($(name) && name in $("form").elements) $(name).value = value;
model = new GPT(about.config, readTensors(about.tensors, $("weights").textContent));
$("generate").disabled = false;
say("ready");
if (given.has("start")) $("form").requestSubmit();
