"""A linear probe of the preference in hidden states."""
