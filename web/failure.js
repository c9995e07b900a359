// What went wrong, as a sentence for the user, and its kind: "away", "local", or the server's own type ("busy", "too_large",
// "unauthorized", ...).
export class Failure extends Error {
  constructor(message, type) {
    super(message[0].toUpperCase() + message.slice(1).replace(/\.?$/, "."));
    this.type = type;
  }
}
