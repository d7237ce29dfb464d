"""Personal data: detectors of scrubadub, of pyap and of spaCy, sentence by sentence.

What is found is what the libraries find on their own (`tests/benchmarks/references/pii.py`), with these exceptions. In
the libraries that the scorer adapts,

- ages and relative dates hang on the clock: they are those of `reference_date` (`birth_dates.py`);
- pyap's offsets are those of its own copy of the text: moved to the text itself (`addresses.py`);
- pyap normalises in a time quadratic in a run of white space (5 s at 10,000 characters): one pass (`addresses.py`);
- equal dates are reported once for each other one, and equal addresses would be by scrubadub's adapter: once each;
- the pattern for credentials is cubic in a run of white space (2 s at a thousand blanks, 24 s at 2,300): a pattern that
  matches the same and never goes back (`patterns.py`);
- textblob writes down every string two edits away from a word near "skype" (1.5 s at 26 letters, hours at a thousand):
  words are looked up instead, and one too long to have a neighbour is not (`spelling.py`);
- names on Skype that occur twice are twice in a pattern: once (`skype.py`);
- spaCy's tokenizer is quadratic in a run of marks (`scorers/tokenizer.py`), and it refuses texts above a million
  characters: read in pieces of 10,000 (`entities.py`).

What is left: pyap's and dateparser's searches are linear but slow (0.3 ms a street number, 5 ms a date), words near
"skype" take 10 ms each where all are new, and a run of "login" without white space is quadratic (15 s at 200,000
characters). Those end at the deadline of the document at the latest.

What scrubadub does and is not mended, so that scores stay comparable: a name on Skype in capitals is searched for in
small letters, and a dot in one stands for any character.
"""
