// Recordings of the microphone as 16 kHz WAV: smaller than the browser's samples, and every position can be jumped to.

import { wavHead } from "../wav.js";

const RATE_HZ = 16000;

const TOLD_EVERY_MS = 250;

/** Records until `stop`, which gives a File; `tell` hears how many seconds there are, from the first sound on. */
export async function record(tell) {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Error("The browser gives no microphone to pages without https. Use localhost, or put TLS before the server.");
  }
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const recorder = new MediaRecorder(stream);
  const parts = [];
  const began = performance.now();
  recorder.ondataavailable = (event) => {
    if (!event.data.size) return;
    parts.push(event.data);
    if (recorder.state === "recording") tell((performance.now() - began) / 1000);
  };
  recorder.start(TOLD_EVERY_MS);
  const end = async () => {
    if (recorder.state !== "inactive") { // as it is by itself once the microphone is unplugged
      await new Promise((resolve) => {
        recorder.onstop = resolve;
        recorder.stop();
      });
    }
    for (const track of stream.getTracks()) track.stop();
  };
  return {
    discard: end,
    async stop() {
      await end();
      if (!parts.length) throw new Error("Nothing was recorded: it ended before the first sound came. Record for longer.");
      const recorded = await new Blob(parts).arrayBuffer();
      const decoded = await new OfflineAudioContext(1, 1, RATE_HZ).decodeAudioData(recorded);
      return new File(packed(decoded.getChannelData(0)), "recording.wav", { type: "audio/wav" });
    },
  };
}

/** Samples of -1 to 1 as 16 bits, after their head. */
function packed(samples) {
  const pcm = Int16Array.from(samples, (sample) => 32767 * Math.max(-1, Math.min(1, sample)));
  return [wavHead(pcm.byteLength, RATE_HZ), pcm];
}
