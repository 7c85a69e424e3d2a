// Sets the theme that was chosen before, if any. It is no module, because modules run after the
// first paint and the page would flash in the other theme.
(() => {
  try {
    const theme = localStorage.getItem("edgeprism.theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // a browser without storage follows the system's theme
  }
})();
