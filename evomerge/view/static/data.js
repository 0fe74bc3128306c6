// Answers of the server; a frozen page holds its own.

const held = document.getElementById("frozen");
export const frozen = held ? JSON.parse(held.textContent) : null;

export async function ask(what, parameters = {}) {
  if (frozen) {
    const key = what === "model" ? `model ${parameters.name}` : what; // genes: of one candidate, which the answer names
    if (frozen[key]?.error) throw new Error(frozen[key].error);
    if (key in frozen) return frozen[key];
    throw new Error("this page is a file, and holds only some models of the front and the references; evomerge view shows all");
  }
  const answer = await fetch(`/data?${new URLSearchParams({ what, ...parameters })}`);
  return read(answer);
}

export async function post(body, token) {
  return read(await fetch("/export", {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Evomerge-Token": token },
    body: JSON.stringify(body),
  }));
}

async function read(answer) {
  const data = await answer.json();
  if (!answer.ok) throw new Error(data.error);
  return data;
}
