// A click on a token, or the return key on one, asks for its attention; a click beside them for none.
const ask = (target) => {
  const token = target.closest('.t');
  if (token) trigger('click', { sample: token.dataset.sample, token: token.dataset.token });
  else if (element.querySelector('.chosen')) trigger('click', { sample: 0, token: -1 });
};
element.addEventListener('click', (event) => ask(event.target));
element.addEventListener('keydown', (event) => {
  if (event.key === 'Enter') ask(event.target);
});
// Where the card of a token is: under its last line, or above it at the window's lower end.
const place = (event) => {
  const token = event.target.closest('.t');
  if (!token) return;
  const line = [...token.getClientRects()].at(-1), area = token.closest('.stories').getBoundingClientRect();
  const above = line.bottom + 130 > window.innerHeight;
  const left = Math.min(line.left, document.documentElement.clientWidth - 272);
  element.style.setProperty('--x', `${left - area.left}px`);
  element.style.setProperty('--y', `${(above ? line.top - 4 : line.bottom + 4) - area.top}px`);
  element.style.setProperty('--lift', above ? '-100%' : '0');
};
element.addEventListener('pointerover', place);
element.addEventListener('focusin', place);
