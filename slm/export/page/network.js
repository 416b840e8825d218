// The network of slm/model/gpt.py once more, in plain JavaScript: from token ids to logits, one token
// at a time, with a KV cache; then the tokenizer and the sampling. Names follow the Python code:
// C width, H heads, D head size, F hidden width of the MLP, V vocabulary.

// ---- weights -------------------------------------------------------------------------------------

// The weights: all scales and vectors in float32, then all matrices in 8-bit integers.
function readTensors(described, base64) {
  const binary = atob(base64);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  const floats = described.reduce((sum, { shape }) => sum + shape[0], 0);
  let float = 0, integer = 4 * floats;
  const tensors = {};
  for (const { name, shape: [rows, columns = 0] } of described) {
    const values = new Float32Array(bytes.buffer, 4 * float, rows);
    float += rows;
    const integers = new Int8Array(bytes.buffer, integer, rows * columns);
    integer += rows * columns;
    tensors[name] = columns ? { rows, columns, integers, scales: values } : { values };
  }
  return tensors;
}

// ---- layers ---------------------------------------------------------------------------------

// A matrix of 8-bit integers with a scale for each row, and perhaps a bias: y = scale (W x) + bias.
class Linear {
  constructor(matrix, bias) {
    Object.assign(this, matrix); // rows, columns, integers, scales
    this.bias = bias && bias.values;
    this.output = new Float64Array(this.rows);
  }

  // Four rows at a time, so that no sum waits for another; the last four may overlap others.
  forward(x) {
    const { rows, columns, integers, scales, bias, output } = this;
    for (let next = 0; next < rows; next += 4) {
      const row = Math.max(0, Math.min(next, rows - 4)), i = row * columns;
      let a = 0, b = 0, c = 0, d = 0;
      for (let k = 0; k < columns; k++) {
        a += integers[i + k] * x[k];
        b += integers[i + columns + k] * x[k];
        c += integers[i + 2 * columns + k] * x[k];
        d += integers[i + 3 * columns + k] * x[k];
      }
      [output[row], output[row + 1], output[row + 2], output[row + 3]] = [a, b, c, d];
    }
    for (let row = 0; row < rows; row++) output[row] = output[row] * scales[row] + (bias?.[row] ?? 0);
    return output;
  }
}

// One row of an embedding.
function embed(matrix, row) {
  const { columns, integers, scales } = matrix;
  return Float64Array.from({ length: columns }, (_, k) => scales[row] * integers[row * columns + k]);
}

// RMSNorm: x / √(mean(x²) + ε) times a gain, which is 1 if there is none.
function rmsNorm(x, gain, epsilon) {
  let squares = 0;
  for (const value of x) squares += value * value;
  const scale = 1 / Math.sqrt(squares / x.length + epsilon);
  return x.map((value, i) => value * scale * (gain ? gain[i] : 1));
}

// LayerNorm: the same around the mean, and perhaps a bias.
function layerNorm(x, gain, bias, epsilon) {
  const mean = x.reduce((sum, value) => sum + value, 0) / x.length;
  const y = rmsNorm(x.map((value) => value - mean), gain, epsilon);
  return bias ? y.map((value, i) => value + bias[i]) : y;
}

// Rotary positions: channels r and r + D / 2 are a point that is rotated by position 10000^(-2 r / D).
function rotate(x, position) {
  const half = x.length / 2, rotated = new Float64Array(x.length);
  for (let r = 0; r < half; r++) {
    const angle = position * 10000 ** (-r / half);
    const cosine = Math.cos(angle), sine = Math.sin(angle);
    rotated[r] = x[r] * cosine - x[r + half] * sine;
    rotated[r + half] = x[r] * sine + x[r + half] * cosine;
  }
  return rotated;
}

// The error function to 1.5e-7: Abramowitz and Stegun, formula 7.1.26.
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const sum = t * (0.254829592 + t * (-0.284496736
    + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return Math.sign(x) * (1 - sum * Math.exp(-x * x));
}

const activations = {
  gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  gelu_tanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  swiglu: (x) => x / (1 + Math.exp(-x)), // SiLU, of the gate
};

function softmax(scores) {
  const most = scores.reduce((a, b) => Math.max(a, b), -Infinity);
  const exponentials = scores.map((score) => Math.exp(score - most));
  const sum = exponentials.reduce((a, b) => a + b, 0);
  return exponentials.map((value) => value / sum);
}

// ---- the network ------------------------------------------------------------------------------

// Queries, keys and values of all heads; each head's output is the mean of the values so far,
// weighted by softmax(q · k / √D).
class CausalSelfAttention {
  constructor(config, tensors, name) {
    this.config = config;
    this.qkv = new Linear(tensors[`${name}.qkv.weight`], tensors[`${name}.qkv.bias`]);
    this.proj = new Linear(tensors[`${name}.proj.weight`], tensors[`${name}.proj.bias`]);
    this.gains = ["q_norm", "k_norm"].map((part) => tensors[`${name}.${part}.weight`]?.values);
  }

  // Queries or keys of one head, normalised and rotated.
  prepare(x, gain, position) {
    const { qk_norm, qk_gain, norm_eps, position: kind } = this.config;
    if (qk_norm) x = rmsNorm(x, gain, qk_gain ? norm_eps : 2 ** -23); // torch's default
    return kind === "rotary" ? rotate(x, position) : x;
  }

  forward(x, position, cache) {
    const C = x.length, H = this.config.n_head, D = C / H;
    const qkv = this.qkv.forward(x), mixed = new Float64Array(C);
    for (let head = 0; head < H; head++) {
      const [q, k, v] = [0, C, 2 * C].map((at) => qkv.slice(at + head * D, at + (head + 1) * D));
      const query = this.prepare(q, this.gains[0], position);
      const { keys, values } = cache[head];
      keys[position] = this.prepare(k, this.gains[1], position);
      values[position] = v;
      const scores = new Float64Array(position + 1);
      for (let s = 0; s <= position; s++) {
        let sum = 0;
        for (let d = 0; d < D; d++) sum += query[d] * keys[s][d];
        scores[s] = sum / Math.sqrt(D);
      }
      softmax(scores).forEach((weight, s) => {
        for (let d = 0; d < D; d++) mixed[head * D + d] += weight * values[s][d];
      });
    }
    return this.proj.forward(mixed);
  }
}

class MLP {
  constructor(config, tensors, name) {
    this.gated = config.mlp === "swiglu";
    this.activate = activations[config.mlp];
    this.up = new Linear(tensors[`${name}.up.weight`], tensors[`${name}.up.bias`]);
    this.down = new Linear(tensors[`${name}.down.weight`], tensors[`${name}.down.bias`]);
  }

  forward(x) {
    const up = this.up.forward(x), F = this.down.columns;
    const hidden = up.subarray(0, F).map(this.activate);
    return this.down.forward(this.gated ? hidden.map((gate, i) => gate * up[F + i]) : hidden);
  }
}

class GPT {
  constructor(config, tensors) {
    Object.assign(this, { config, tensors });
    this.blocks = Array.from({ length: config.n_layer }, (_, layer) => ({
      attention: new CausalSelfAttention(config, tensors, `blocks.${layer}.attention`),
      mlp: new MLP(config, tensors, `blocks.${layer}.mlp`),
    }));
    this.head = new Linear(tensors["head.weight"] ?? tensors["token_embedding.weight"]);
    this.reset();
  }

  // Forgets the tokens read so far.
  reset() {
    this.position = 0;
    const heads = () => Array.from({ length: this.config.n_head }, () => ({ keys: [], values: [] }));
    this.cache = this.blocks.map(heads);
  }

  norm(x, name) {
    const [gain, bias] = ["weight", "bias"].map((part) => this.tensors[`${name}.${part}`]?.values);
    const { norm, norm_eps } = this.config;
    return norm === "rms" ? rmsNorm(x, gain, norm_eps) : layerNorm(x, gain, bias, norm_eps);
  }

  // Reads one more token; returns the logits (V) of the next. x is the residual stream.
  forward(token) {
    const position = this.position++, add = (x, y) => x.map((value, i) => value + y[i]);
    let x = embed(this.tensors["token_embedding.weight"], token);
    if (this.config.position === "learned") {
      x = add(x, embed(this.tensors["position_embedding.weight"], position));
    }
    this.blocks.forEach(({ attention, mlp }, layer) => {
      const name = `blocks.${layer}`;
      x = add(x, attention.forward(this.norm(x, `${name}.attention_norm`), position, this.cache[layer]));
      x = add(x, mlp.forward(this.norm(x, `${name}.mlp_norm`)));
    });
    return this.head.forward(this.norm(x, "norm"));
  }
}

// ---- the tokenizer ------------------------------------------------------------------------------

// Byte-pair encoding. A token is a text with a character for each of its bytes; its id is also its
// merge priority. The last id is end-of-text.
class Tokenizer {
  constructor(tokens) {
    this.tokens = tokens;
    this.endOfText = tokens.length - 1;
    this.ranks = new Map(tokens.map((token, id) => [token, id]).filter(([token]) => token));
  }

  // How GPT-2 splits text: words and numbers with a space before, other signs, white space.
  static pieces = new RegExp(
    "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\p{White_Space}\\p{L}\\p{N}]+"
    + "|\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}+", "gu",
  );

  encode(text) {
    return (text.match(Tokenizer.pieces) ?? []).flatMap((piece) => {
      const parts = Array.from(new TextEncoder().encode(piece), (byte) => String.fromCharCode(byte));
      for (;;) { // joins the neighbours of the lowest rank, until no two make a token
        const ranks = parts.slice(1).map((part, i) => this.ranks.get(parts[i] + part) ?? Infinity);
        const first = ranks.indexOf(ranks.reduce((a, b) => Math.min(a, b), Infinity));
        if (first < 0 || ranks[first] === Infinity) return parts.map((part) => this.ranks.get(part));
        parts.splice(first, 2, parts[first] + parts[first + 1]);
      }
    });
  }

  bytes(id) {
    return Uint8Array.from(this.tokens[id], (character) => character.charCodeAt(0));
  }
}

// ---- sampling -----------------------------------------------------------------------------------

// Random numbers from 0 to 1 that a seed determines: the generator mulberry32.
function randomNumbers(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

// The ids of the k largest logits, the largest first; of equal ones, the lowest id first.
function likeliest(logits, k) {
  if (k > 100) return Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a]).slice(0, k);
  const ids = []; // so few that inserting is faster than sorting the whole vocabulary
  for (let id = 0; id < logits.length; id++) {
    if (ids.length === k && logits[id] <= logits[ids[k - 1]]) continue;
    let i = Math.min(ids.length, k - 1);
    for (; i > 0 && logits[ids[i - 1]] < logits[id]; i--) ids[i] = ids[i - 1];
    ids[i] = id;
  }
  return ids;
}

// The next token: of the k likeliest, the fewest that together have probability p, one is drawn.
function sample(logits, { temperature, topK, topP }, random) {
  if (temperature === 0) return likeliest(logits, 1)[0];
  const ordered = topK || topP < 1; // else the order does not matter
  const candidates = ordered ? likeliest(logits, topK || logits.length) : Array.from(logits.keys());
  const probabilities = softmax(candidates.map((id) => logits[id] / temperature));
  let kept = 0, total = 0;
  while (kept < candidates.length && (kept === 0 || total < topP)) total += probabilities[kept++];
  let left = random() * total, i = 0;
  while (i < kept - 1 && (left -= probabilities[i]) >= 0) i++;
  return candidates[i];
}

// Yields each new token with the logits it was drawn from, and null while the prompt is being read.
// A context that is full continues from its last half.
function* generate(model, prompt, options) {
  const random = randomNumbers(options.seed), limit = model.config.block_size;
  const tokens = [...prompt], endOfText = model.config.vocab_size - 1;
  let unread = tokens.slice(-limit);
  model.reset();
  for (let count = 0; count < options.maxNewTokens; count++) {
    if (model.position + unread.length > limit) {
      model.reset();
      unread = tokens.slice(-Math.max(1, Math.floor(limit / 2)));
    }
    let logits;
    for (const token of unread) {
      logits = model.forward(token);
      yield null;
    }
    const token = sample(logits, options, random);
    if (token === endOfText) return;
    tokens.push(token);
    unread = [token];
    yield { token, logits };
  }
}
