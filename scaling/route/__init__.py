"""Which replica gets a request: pure policies over a snapshot, and the book that reserves what they chose."""
