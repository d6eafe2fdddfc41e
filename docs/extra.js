// Names for what the theme leaves unnamed, and a keyboard's way into what scrolls.
function name() {
  const search = document.querySelector(".md-search");
  if (search) search.setAttribute("aria-label", "Search");
  document.querySelectorAll(".md-code__nav").forEach((nav, i) => {
    nav.setAttribute("aria-label", `Code block ${i + 1}`);
  });
  document.querySelectorAll(".md-typeset pre > code, .md-typeset__scrollwrap").forEach((part) => {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
    else part.removeAttribute("tabindex");
  });
}
new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
addEventListener("resize", name);
addEventListener("load", name);
