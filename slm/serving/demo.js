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
