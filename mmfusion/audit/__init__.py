"""Audits a catalogue: where titles and photos disagree, what titles leave out, and which photos are there twice."""
