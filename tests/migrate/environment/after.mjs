import keyhatch from "keyhatch";

const key = await keyhatch.get("my-bot/API_KEY");
const headers = { authorization: `Bearer ${key.reveal()}` };
const reply = await fetch(process.env.API_URL, { headers });
console.log(reply.status, await reply.text());
