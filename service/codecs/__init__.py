"""Media to tokens and back: each codec speaks codes 0..K-1 of its own modality; the vocabulary places them."""
