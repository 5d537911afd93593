"""Takes over what other programs captured: packets with plaintext or with keys, and browsers' HAR files."""
