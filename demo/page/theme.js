// Runs before the first paint, so that a chosen theme never flashes. Not a module for that reason.
(() => {
  const chosen = localStorage.getItem('tidewire.theme');
  if (chosen === 'light' || chosen === 'dark') document.documentElement.dataset.theme = chosen;
})();
