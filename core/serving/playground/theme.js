// Runs before the first paint, so that a chosen theme does not flash. Without a choice the system's preference holds.
{
  let chosen = null;
  try {
    chosen = localStorage.getItem("sixfold-theme");
  } catch {
    // storage is off: the preference holds
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}
