"""TIMIT's 61 phones, and the 39 classes they are scored in."""
import numpy as np

PHONES61 = tuple(  # in the order of TIMIT's phoncode.doc
    'b d g p t k dx q '                                                              # stops
    'bcl dcl gcl pcl tcl kcl '                                                       # their closures
    'jh ch '                                                                         # affricates
    's sh z zh f th v dh '                                                           # fricatives
    'm n ng em en eng nx '                                                           # nasals
    'l r w y hh hv el '                                                              # semivowels and glides
    'iy ih eh ey ae aa aw ay ah ao oy ow uh uw ux er ax ix axr ax-h '                # vowels
    'pau epi h#'.split())                                                            # silences

FOLDING = {  # all others keep their name
    'ao': 'aa', 'ax': 'ah', 'ax-h': 'ah', 'axr': 'er', 'hv': 'hh', 'ix': 'ih', 'el': 'l', 'em': 'm', 'en': 'n', 'nx': 'n',
    'eng': 'ng', 'zh': 'sh', 'ux': 'uw',
    **dict.fromkeys('pcl tcl kcl bcl dcl gcl h# pau epi q'.split(), 'sil'),
}

PHONES39 = tuple(phone for phone in PHONES61 if phone not in FOLDING) + ('sil',)
INDEX61 = {phone: k for k, phone in enumerate(PHONES61)}
_FOLD = np.array([PHONES39.index(FOLDING.get(phone, phone)) for phone in PHONES61], np.int32)


def fold(labels):
  """Maps classes of PHONES61 to classes of PHONES39.

  Args:
    labels: integer array of any shape, indices into PHONES61.

  Returns:
    int32 array of the same shape, indices into PHONES39.
  """
  return _FOLD[labels]
