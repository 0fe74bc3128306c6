// Answers of the server; a frozen page holds its own.

const held = document.getElementById("frozen");
export const frozen = held ? JSON.parse(held.textContent) : null;

export async function ask(what, parameters = {}) {
  if (frozen) {
    const key = [what, ...["name", "against"].filter((part) => parameters[part]).map((part) => parameters[part])].join(" ");
    if (key in frozen) return frozen[key];
    throw new Error("this page is a report: it holds only the models of its front and the references; `evomerge view` shows all");
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
