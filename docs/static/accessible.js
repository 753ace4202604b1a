// What the theme leaves to be wished for by the keyboard and by screen readers.
document.addEventListener("DOMContentLoaded", () => {
  const label = (selector, text) => document.querySelectorAll(selector).forEach((part) => part.setAttribute("aria-label", text));
  label("aside.sidebar-drawer", "Pages");
  label("aside.toc-drawer", "On this page");
  document.querySelectorAll("[role=heading]:not([aria-level])").forEach((heading) => heading.setAttribute("aria-level", "2"));
  document.querySelectorAll(".highlight pre, .table-wrapper").forEach((part) => part.setAttribute("tabindex", "0"));
  const article = document.querySelector("article");
  if (article && !document.querySelector("h1")) {
    const title = document.createElement("h1");
    title.textContent = document.title.split(" - ")[0];
    article.prepend(title);
  }
});
