// The chart library, once for all views of a page: by its version, a promise of the module.

const WB_SHARED = (window.__workbench = window.__workbench || { plotly: {}, asked: {} });
WB_SHARED.kept ??= new Map(); // by the run's name: what was chosen in its toolbar

// plotly.js from its gzipped bytes, as a module of its own: nothing is left in the page's global names.
async function wbUnpack(buffer) {
  const packed = new Blob([buffer]).stream().pipeThrough(new DecompressionStream("gzip"));
  const source = await new Response(packed).text();
  const before = window.Plotly;
  const parts = ["const module = { exports: {} }; const exports = module.exports; const define = undefined;\n", source, "\nexport default module.exports;"];
  const url = URL.createObjectURL(new Blob(parts, { type: "text/javascript" }));
  try {
    return (await import(/* webpackIgnore: true */ url)).default;
  } finally {
    URL.revokeObjectURL(url);
    if (before === undefined) delete window.Plotly;
    else window.Plotly = before;
  }
}

