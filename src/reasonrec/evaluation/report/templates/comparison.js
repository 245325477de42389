// Shows the marks, plots and tests against the chosen reference; all of them are in the page.
(() => {
  const select = document.getElementById("reference");
  const show = () => {
    document.querySelectorAll("[data-reference]").forEach((part) => {
      part.hidden = part.dataset.reference !== select.value;
    });
    const name = select.selectedOptions[0].textContent;
    document.getElementById("said").textContent = `Marks now compare with ${name}.`;
  };
  select.addEventListener("change", show);
})();
