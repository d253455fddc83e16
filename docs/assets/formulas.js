// Typeset every formula that pymdownx.arithmatex has marked, with the copy of KaTeX beside this file.
document.addEventListener("DOMContentLoaded", () => {
  for (const formula of document.querySelectorAll(".arithmatex")) {
    const display = formula.tagName === "DIV";
    const source = formula.textContent.trim().slice(2, -2); // without \( \) or \[ \]
    katex.render(source, formula, {displayMode: display, throwOnError: false, output: "htmlAndMathml"});
  }
});
