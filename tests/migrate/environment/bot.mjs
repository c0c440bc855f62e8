const headers = { authorization: `Bearer ${process.env.API_KEY}` };
const reply = await fetch(process.env.API_URL, { headers });
console.log(reply.status, await reply.text());
