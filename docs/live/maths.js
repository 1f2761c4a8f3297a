// The method's arithmetic without its networks: random numbers, noise, Adam, samplers. Everything is a Float32Array.

const round = Math.fround;
export const numbersIn = (shape) => shape.reduce((a, b) => a * b, 1);

// Torch's CPU generator (a Mersenne twister), so that a seed gives the noise that it gives in Python.
export class Generator {
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = seed;
    for (let k = 1, s = this.state; k < 624; k++) s[k] = Math.imul(1812433253, s[k - 1] ^ (s[k - 1] >>> 30)) + k;
    this.at = 624;
  }
  next() {
    const s = this.state;
    if (this.at === 624) {
      for (let k = 0; k < 624; k++) {
        const y = (s[k] & 0x80000000) | (s[(k + 1) % 624] & 0x7fffffff);
        s[k] = s[(k + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.at = 0;
    }
    let y = s[this.at++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }
  uniform(count) {
    return Float32Array.from({ length: count }, () => (this.next() & 0xffffff) / 2 ** 24);
  }
  normal(count) { // Box and Muller, in blocks of sixteen; count must be a multiple of sixteen
    const x = this.uniform(count);
    for (let block = 0; block < count; block += 16)
      for (let k = block; k < block + 8; k++) {
        const radius = Math.sqrt(-2 * Math.log(round(1 - x[k]))), angle = 2 * Math.PI * x[k + 8];
        x[k] = radius * Math.cos(angle);
        x[k + 8] = radius * Math.sin(angle);
      }
    return x;
  }
}

// ᾱ_t of the model's noise process
export function alphasOf({ beta_start, beta_end, num_train_timesteps: total }) {
  const [a, b] = [Math.sqrt(beta_start), Math.sqrt(beta_end)], alphas = new Float64Array(total);
  for (let t = 0, product = 1; t < total; t++) alphas[t] = product *= 1 - (a + ((b - a) * t) / (total - 1)) ** 2;
  return alphas;
}

// z_t = √ᾱ_t z + √(1 - ᾱ_t) ε, for several t: the noise is as long as all answers together
export function noised(alphas, z, noise, times) {
  return noise.map((e, k) => {
    const alpha = alphas[times[Math.floor(k / z.length)]];
    return Math.sqrt(alpha) * z[k % z.length] + Math.sqrt(1 - alpha) * e;
  });
}

// One random timestep from each equal part of [0, total); their density is proportional to t^bias
export function stratified(count, total, generator, bias = 0) {
  return Array.from(generator.uniform(count), (u, k) => {
    let position = round(round(round(k + u) * total) / count);
    if (bias) position = round(total * round(round(position / total) ** (1 / (1 + bias))));
    return Math.min(Math.floor(position), total - 1);
  });
}

// The eight pairs (noise, timestep) on which the probe loss is measured
export function probeOf(alphas, z, pairs = 8) {
  const t = Array.from({ length: pairs }, (_, k) => Math.floor(((k + 0.5) * alphas.length) / pairs));
  const target = new Generator(20221017).normal(pairs * z.length);
  return { t, target, z_t: noised(alphas, z, target, t) };
}

export function meanSquare(a, b) {
  let sum = 0;
  for (let k = 0; k < a.length; k++) sum += (a[k] - b[k]) ** 2;
  return sum / a.length;
}

// The last part of the steps, `decay`, leads the rate straight down to 0
export const rateAt = (step, steps, lr, decay = 0) => lr * Math.min(1, decay ? (steps - step + 1) / (decay * steps) : 1);

// Adam (Kingma & Ba 2015), for weights that lie in one array; `at` is where a gradient's weights begin
export class Adam {
  constructor(weights) {
    [this.weights, this.step] = [weights, 0];
    [this.m, this.v] = [new Float32Array(weights.length), new Float32Array(weights.length)];
  }
  begin(rate) {
    this.step += 1;
    this.size = rate / (1 - 0.9 ** this.step);
    this.root = Math.sqrt(1 - 0.999 ** this.step);
  }
  descend(gradient, at = 0) {
    const { weights, m, v, size, root } = this;
    for (let k = 0, w = at; k < gradient.length; k++, w++) {
      const g = gradient[k];
      m[w] += 0.1 * (g - m[w]);
      v[w] = 0.999 * v[w] + 0.001 * g * g;
      weights[w] -= (size * m[w]) / (Math.sqrt(v[w]) / root + 1e-8);
    }
  }
}

export function mix(a, b, share, out = new Float32Array(a.length)) { // a + share·(b - a)
  for (let k = 0; k < a.length; k++) out[k] = a[k] + share * (b[k] - a[k]);
  return out;
}

// Timesteps with equal gaps: those of DDIM and DDPM, or those of DPM-Solver, which end one gap earlier
export function timesteps(steps, { num_train_timesteps: total, steps_offset: offset }, gaps = steps) {
  return Array.from({ length: steps }, (_, k) => Math.floor(total / gaps) * (gaps - 1 - k) + offset);
}

const original = (z, answer, alpha) => z.map((x, k) => (x - Math.sqrt(1 - alpha) * answer[k]) / Math.sqrt(alpha));

// Where a DDPM step leads before noise is added (Song et al. 2021, eq. 12), and ẑ_0. With share = 0 the step is DDIM's.
export function ddpmMean(z, answer, alpha, before, share = 1) {
  const z_0 = original(z, answer, alpha);
  const variance = share * ((1 - before) / (1 - alpha)) * (1 - alpha / before);
  const [a, b] = [Math.sqrt(before), Math.sqrt(Math.max(0, 1 - before - variance))];
  return { z_0, mean: z_0.map((x, k) => a * x + b * answer[k]) };
}

// Draws along given noise. guess(z_t, t) answers the noise in z_t; look(z_0, index) sees each step.
export async function alongPath(guess, { start, added }, times, alphas, look) {
  let z = start;
  for (const [index, t] of times.entries()) {
    const { z_0, mean } = ddpmMean(z, await guess(z, t), alphas[t], alphas[times[index + 1] ?? 0], added ? 1 : 0);
    await look?.(z_0, index);
    z = added ? mean.map((x, k) => x + added[index][k]) : mean;
  }
  return z;
}

// The picture's own noise (Huberman-Spiegelglas et al. 2024): the picture noised to every level, and what each step
// lacks on the way to the next. guessAll(levels, times) answers for all levels, one after the other.
export async function ownNoise(guessAll, z, seed, times, alphas) {
  const generator = new Generator(seed), size = z.length;
  const levels = times.map((t) => noised(alphas, z, generator.normal(size), [t]));
  const answers = await guessAll(levels, times);
  const added = levels.map((level, index) => {
    const t = times[index], { mean } = ddpmMean(level, answers[index], alphas[t], alphas[times[index + 1] ?? 0]);
    return mean.map((x, k) => (levels[index + 1] ?? z)[k] - x);
  });
  return { start: levels[0], added };
}

// SDE-DPM-Solver++ of second order (Lu et al. 2022), the model's own sampler: new noise at every step
export async function sampled(guess, seed, size, times, alphas, look) {
  const generator = new Generator(seed);
  const sigmas = [...times.map((t) => Math.sqrt((1 - alphas[t]) / alphas[t])), 0];
  let z = generator.normal(size), last = null;
  for (const [index, t] of times.entries()) {
    const [from, to] = [sigmas[index], sigmas[index + 1]], z_0 = original(z, await guess(z, t), alphas[t]);
    await look?.(z_0, index);
    const alpha = 1 / Math.sqrt(to ** 2 + 1), h = Math.log(from / to), noise = generator.normal(size);
    const second = last && to ? (0.5 * h) / Math.log(sigmas[index - 1] / from) : 0;
    const keep = ((to * alpha) / (from / Math.sqrt(from ** 2 + 1))) * Math.exp(-h), pull = alpha * (1 - Math.exp(-2 * h));
    const shake = to * alpha * Math.sqrt(1 - Math.exp(-2 * h));
    const towards = last ? z_0.map((x, k) => x + second * (x - last[k])) : z_0;
    z = z.map((x, k) => keep * x + pull * towards[k] + shake * noise[k]);
    last = z_0;
  }
  return z;
}
