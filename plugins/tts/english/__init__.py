"""English text on its way to Kokoro's phonemes, without anything under the GPL."""
