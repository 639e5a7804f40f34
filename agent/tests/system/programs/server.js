// Says which container answers, and which client asked.
const server = require('http').createServer((request, response) => {
  const { remoteAddress, remotePort } = request.socket;
  response.setHeader('Connection', 'close');
  response.end(`${process.env.HOSTNAME} client=${remoteAddress}:${remotePort}\n`);
});
server.listen(80);
process.on('SIGTERM', () => server.close(() => process.exit(0)));
