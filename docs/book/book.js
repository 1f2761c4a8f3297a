// What a page can do beyond being read: keep predictions, stop films, search. Without it everything can still be read.

// -- predictions: the options become a choice, and the result says how it compares
const kept = {}, right = {};
const predictions = [...document.querySelectorAll('main .predict')].filter(one => one.querySelector('ul'));

function tally() {
  const seen = Object.keys(right).length, hits = Object.values(right).filter(Boolean).length;
  document.getElementById('score').textContent =
    seen ? `Your predictions: ${hits} of ${seen} right, ${predictions.length - seen} still open.` : '';
}

for (const question of predictions) {
  const list = [...question.querySelectorAll('ul')].at(-1), key = question.dataset.key;
  list.setAttribute('role', 'radiogroup');
  list.setAttribute('aria-label', 'Your prediction');
  for (const item of list.children) {
    const label = document.createElement('label'), knob = document.createElement('input');
    Object.assign(knob, { type: 'radio', name: key, value: item.textContent });
    knob.onchange = () => { kept[key] = knob.value; };
    label.append(knob, ' ' + item.textContent);
    item.setAttribute('role', 'none');
    item.replaceChildren(label);
  }
}

for (const result of document.querySelectorAll('.result')) {
  result.addEventListener('toggle', () => {
    const key = result.dataset.key, said = kept[key];
    if (!result.open || !said || key in right) return;
    const measured = result.textContent.match(/measured: (.*)/)?.[1] ?? '';
    right[key] = measured.startsWith(said);
    const line = document.createElement('p');
    line.className = 'said';
    line.textContent = `You said: ${said}. ${right[key] ? 'That is right.' : 'What did you overlook?'}`;
    result.querySelector('summary').after(line);
    document.querySelectorAll('.predict input').forEach(knob => { if (knob.name === key) knob.disabled = true; });
    tally();
  });
}

// -- films can be stopped; readers who asked for less motion start them themselves
const still = matchMedia('(prefers-reduced-motion: reduce)').matches;
const films = [...document.querySelectorAll('main img[src^="data:image/webp"], .deck img[src^="data:image/webp"]')]
  .filter(one => !one.closest('figure') && atob(one.src.slice(23, 23 + 64)).includes('ANIM'));

for (const film of films) {
  const box = document.createElement('span'), canvas = document.createElement('canvas');
  const button = document.createElement('button');
  box.className = 'film';
  canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label', film.alt);
  film.replaceWith(box);
  box.append(film, canvas, button);
  const play = on => {
    if (!on) {
      [canvas.width, canvas.height] = [film.naturalWidth, film.naturalHeight];
      canvas.getContext('2d').drawImage(film, 0, 0);
    }
    [film.hidden, canvas.hidden] = [!on, on];
    button.textContent = on ? 'Stop' : 'Play';
    button.ariaLabel = `${button.textContent} the film`;
    button.onclick = () => play(!on);
  };
  film.decode().then(() => play(!still), () => play(true));
}

// -- what scrolls sideways can be reached by keyboard
function reach() {
  for (const box of document.querySelectorAll('pre, .wide, mjx-container[display="true"]')) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
}
addEventListener('load', reach);
addEventListener('toggle', reach, true);
addEventListener('resize', reach);

// -- on paper there is nothing to unfold
addEventListener('beforeprint', () => document.querySelectorAll('.result').forEach(one => { one.open = true; }));

// -- search: every word must occur; headings and the whole phrase count more, then the earlier page comes first
function search(asked) {
  const phrase = asked.toLowerCase(), words = phrase.split(/\s+/), found = [];
  for (const one of INDEX) {
    const title = `${one.in} ${one.title}`.toLowerCase(), text = one.text.toLowerCase();
    if (!words.every(word => title.includes(word) || text.includes(word))) continue;
    const points = words.reduce((sum, word) => sum + 5 * title.includes(word) + Math.min(text.split(word).length - 1, 3), 0);
    found.push([points + 4 * text.includes(phrase), one]);
  }
  return found.sort((a, b) => b[0] - a[0]).map(([, one]) => one).slice(0, 20);
}

function snippet(text, asked) { // around the phrase, or else its first word
  const line = document.createElement('p'), hit = document.createElement('mark');
  const wanted = text.toLowerCase().includes(asked) ? asked : asked.split(/\s+/)[0];
  const at = text.toLowerCase().indexOf(wanted), from = text.lastIndexOf(' ', Math.max(0, at - 70)) + 1;
  if (at < 0) return line.append(text.slice(0, 160)), line;
  hit.textContent = text.slice(at, at + wanted.length);
  line.append((from ? '… ' : '') + text.slice(from, at), hit, text.slice(at + wanted.length, at + 110).replace(/\S*$/, '…'));
  return line;
}

addEventListener('DOMContentLoaded', () => {
  const place = document.getElementById('found'), asked = new URLSearchParams(location.search).get('q')?.trim();
  if (!place || !asked) return;
  document.querySelector('input[type="search"]').value = asked;
  const results = search(asked), count = document.createElement('p');
  count.textContent = results.length ? `“${asked}”:` : `“${asked}” is on no page. Try one word, or look in the glossary.`;
  place.append(count);
  for (const one of results) {
    const heading = document.createElement('h2'), link = document.createElement('a');
    Object.assign(link, { href: `${one.page}#${one.id}`, textContent: one.in === one.title ? one.in : `${one.in}: ${one.title}` });
    heading.append(link);
    place.append(heading, snippet(one.text, asked.toLowerCase()));
  }
});
