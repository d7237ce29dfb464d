"""What a labelled dataset holds, and the proof from its files alone that nothing was lost."""
