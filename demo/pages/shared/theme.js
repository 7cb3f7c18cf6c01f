// Runs before the first paint, so that the theme does not flash. Modules run too late, so this is a plain script.
(() => {
  const chosen = localStorage.getItem('tidewire.theme');
  if (chosen === 'light' || chosen === 'dark') document.documentElement.dataset.theme = chosen;
})();
