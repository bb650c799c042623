// Recordings of the microphone as 16 kHz WAV: smaller than the browser's samples, and every position can be jumped to.

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
      const packed = await new Blob(parts).arrayBuffer();
      const decoded = await new OfflineAudioContext(1, 1, RATE_HZ).decodeAudioData(packed);
      return new File([wav(decoded.getChannelData(0), RATE_HZ)], "recording.wav", { type: "audio/wav" });
    },
  };
}

/** Samples of -1 to 1 as a WAV of 16 bits. */
export function wav(samples, rateHz) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, letters) => [...letters].forEach((letter, index) => view.setUint8(at + index, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rateHz, true);
  view.setUint32(28, 2 * rateHz, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((sample, index) => view.setInt16(44 + 2 * index, 32767 * Math.max(-1, Math.min(1, sample)), true));
  return view.buffer;
}
