// Samples to a WAV file (RIFF, PCM 16 bit, one channel).

/** Return pieces of samples (Float32Array, -1 to 1) as bytes of PCM, little-endian. */
export function pcm16(pieces) {
  const count = pieces.reduce((sum, piece) => sum + piece.length, 0);
  const view = new DataView(new ArrayBuffer(2 * count));
  let place = 0;
  for (const piece of pieces) {
    for (const value of piece) {
      view.setInt16(place, Math.round(Math.max(-1, Math.min(1, value)) * 32767), true);
      place += 2;
    }
  }
  return view.buffer;
}

/** Return a WAV file of samples at `rate` Hz. */
export function wav(pieces, rate) {
  const data = pcm16(pieces);
  const head = new DataView(new ArrayBuffer(44));
  const text = (at, word) => [...word].forEach((one, place) => head.setUint8(at + place, one.charCodeAt(0)));
  text(0, "RIFF");
  head.setUint32(4, 36 + data.byteLength, true);
  text(8, "WAVEfmt ");
  head.setUint32(16, 16, true);
  head.setUint16(20, 1, true);
  head.setUint16(22, 1, true);
  head.setUint32(24, rate, true);
  head.setUint32(28, 2 * rate, true);
  head.setUint16(32, 2, true);
  head.setUint16(34, 16, true);
  text(36, "data");
  head.setUint32(40, data.byteLength, true);
  return new Blob([head.buffer, data], { type: "audio/wav" });
}
