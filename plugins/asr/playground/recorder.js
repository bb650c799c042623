// Recordings of the microphone as 16 kHz WAV: smaller than the browser's samples, and every position can be jumped to.

import { wavHead } from "../wav.js";

const RATE_HZ = 16000;

/** Records until `stop`, which gives a File. */
export async function record() {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Error("The browser gives no microphone to pages without https. Use localhost, or put TLS before the server.");
  }
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const recorder = new MediaRecorder(stream);
  const parts = [];
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.start();
  return {
    async stop() {
      await new Promise((resolve) => {
        recorder.onstop = resolve;
        recorder.stop();
      });
      for (const track of stream.getTracks()) track.stop();
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
