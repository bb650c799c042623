// Plays samples while they arrive, and keeps them so that they can be heard again.

import { wavHead } from "../wav.js";

const RATE_HZ = 24000;
const LEAD_S = 0.05; // of the first piece: the next one must be there before it ends

/** One speech. `add` takes bytes of 16-bit samples, `stop` ends the sound, `file` gives all as a WAV. */
export class PcmPlayer {
  constructor() {
    this.context = new AudioContext({ sampleRate: RATE_HZ });
    this.pieces = [];
    this.odd = null; // half a sample between two pieces
    this.nextAt = 0;
  }

  get seconds() {
    return this.pieces.reduce((sum, piece) => sum + piece.length, 0) / RATE_HZ;
  }

  add(bytes) {
    if (this.odd) {
      bytes = Uint8Array.of(...this.odd, ...bytes);
      this.odd = null;
    }
    if (bytes.length % 2) {
      this.odd = bytes.slice(-1);
      bytes = bytes.slice(0, -1);
    }
    if (!bytes.length) return;
    const samples = new Int16Array(bytes.slice().buffer);
    this.pieces.push(samples);
    if (this.context.state === "closed") return;
    const buffer = this.context.createBuffer(1, samples.length, RATE_HZ);
    buffer.getChannelData(0).set(Float32Array.from(samples, (sample) => sample / 32768));
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.context.destination);
    this.nextAt = Math.max(this.nextAt, this.context.currentTime + LEAD_S);
    source.start(this.nextAt);
    this.nextAt += buffer.duration;
  }

  stop() {
    if (this.context.state !== "closed") this.context.close();
  }

  file() {
    const numBytes = this.pieces.reduce((sum, piece) => sum + piece.byteLength, 0);
    return new Blob([wavHead(numBytes, RATE_HZ), ...this.pieces], { type: "audio/wav" });
  }
}
