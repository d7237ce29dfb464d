"""Personal data: detectors of scrubadub, of pyap and of spaCy, sentence by sentence."""
