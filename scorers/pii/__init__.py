"""Find personal data with the detectors of scrubadub, pyap and spaCy, sentence by sentence.

The findings are those of the libraries themselves (`tests/benchmarks/references/pii.py`), except that we fix these
problems in them:

- ages and relative dates depend on the clock: here on `reference_date` (`birth_dates.py`);
- pyap's offsets refer to its own copy of the text: mapped back to the text (`addresses.py`);
- pyap's normalisation is quadratic in a run of white space (5 s at 10,000 characters): one pass (`addresses.py`);
- n equal dates are reported n times each, and so would n equal addresses by scrubadub's adapter: once each;
- the pattern for credentials is cubic in a run of white space (2 s at a thousand blanks, 24 s at 2,300): an equivalent
  pattern that never backtracks (`patterns.py`);
- textblob generates every string two edits away from a word near "skype" (1.5 s at 26 letters, hours at a thousand):
  we look words up instead, and skip those too long to have a neighbour (`spelling.py`);
- a Skype name that occurs twice is in the search pattern twice: once (`skype.py`);
- spaCy's tokenizer is quadratic in a run of marks (`scorers/tokenizer.py`), and spaCy refuses texts above a million
  characters: we read pieces of 10,000 (`entities.py`).

Still slow: pyap's and dateparser's searches are linear but take 0.3 ms per street number and 5 ms per date, words near
"skype" take 10 ms each if all are new, and a run of "login" without white space is quadratic (15 s at 200,000
characters). The document's deadline bounds them all.

Two faults of scrubadub are kept, so that scores stay comparable: it searches for a Skype name in capitals in lower
case, and a dot in a Skype name matches any character.
"""
