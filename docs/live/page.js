const assets = JSON.parse(document.getElementById("assets").textContent);
for (const [name,a] of Object.entries(assets)) if (a.url) a.url = new URL(a.url, location.href).href;
else a.url = URL.createObjectURL(new Blob([Uint8Array.from(atob(document.querySelector(`[data-asset="${name}"]`).textContent), c=>c.charCodeAt(0))], {type:a.type}));
window.assets=assets; window.log=[]; 
window.worker = new Worker(assets["engine.js"].url, {type:"module"});
worker.onmessage = ({data}) => window.log.push(data);
worker.onerror = (e) => window.log.push({is:"error", reason: e.message});
worker.postMessage({ask:"load", assets, threads: crossOriginIsolated ? navigator.hardwareConcurrency : 1});
