"""English sentences from a small grammar of our own, for the synthetic corpus."""
import re
import zlib

WORDS = {name: words.split() for name, words in {
    'person': 'mother father Susan Michael Joyce Edward Laura George Alice Charlie Ruth Timothy Beth Jonathan Nora Peter '
              'Judy Walter Audrey Victor everybody someone nobody grandmother Arthur Eugene',
    'people': 'children sailors teachers farmers nurses doctors painters travellers thieves boys girls neighbours '
              'soldiers engineers students judges authors shepherds brothers visitors musicians gardeners butchers '
              'cousins twins',
    'noun': 'book kitten bottle garage treasure apple house mouse church chair table ladder button curtain cushion '
            'candle boat thumb path picture leather oyster coin toy voice cloud owl jar jacket bridge garden yarn carrot '
            'pepper sugar wool hammer shovel rope engine camera window basket blanket fish goat turtle feather ring song '
            'kingdom mountain river island judge puzzle magazine village orange sausage pudding butter cheese biscuit '
            'thread cloth zipper uniform yacht vision decision measure explosion mirage bathtub letter question answer '
            'fiddle drum ruler towel powder crown fountain eagle potato tomato onion mushroom violin ship shoe brush '
            'watch bench branch',
    'adjective': 'little yellow thick dirty usual young foolish loud brown royal noisy gentle huge ancient shiny smooth '
                 'rough heavy broken rotten hidden wooden cotton purple orange quiet sour sharp cheap fresh charming '
                 'strange dusty greasy muddy pretty bitter better wild warm cold oily pure poor rare square third '
                 'thirsty healthy curious unusual precious ordinary casual visible shallow yearly awful thin thorough',
    'verb': 'bought found measured carried watched followed destroyed opened covered wanted noticed painted forgot '
            'enjoyed repaired borrowed hid pulled pushed chose threw caught brought washed wrote heard shook judged '
            'changed imagined polished cooked buttered bothered avoided finished ignored examined arranged collected '
            'weighed shared dropped lifted guarded treasured counted searched pointed-at looked-for laughed-at asked-for '
            'listened-to',
    'gerund': 'singing running cooking reading walking hiding fishing drawing watching teaching joking laughing working '
              'sleeping thinking shouting building breathing travelling measuring digging pushing',
    'adverb': 'quickly usually slowly happily rarely never always often suddenly loudly gently foolishly secretly '
              'finally actually carefully casually hardly barely thoughtfully eagerly',
    'place': 'in-the-kitchen at-the-beach near-the-river behind-the-church under-the-bridge on-the-roof in-the-garage '
             'beyond-the-village by-the-fountain above-the-clouds along-the-narrow-path across-the-valley '
             'inside-the-old-house between-two-mountains outside-the-city around-the-corner through-the-thick-fog '
             'ahead-of-the-others',
    'time': 'today yesterday at-noon each-morning every-Thursday last-year before-breakfast after-the-storm '
            'in-early-August at-midnight on-Wednesday for-thirty-years during-the-vacation since-July long-ago tonight '
            'this-month',
    'determiner': 'the a his her your our their this that another every the the a',
    'number': 'two three four five six seven eight nine ten eleven twelve thirteen twenty thirty forty fifty a-hundred',
    'mind': 'thought said knew believed hoped imagined heard agreed',
}.items()}

PATTERNS = [pattern.split() for pattern in (
    '+person +adverb +verb +determiner +adjective +noun .',
    'the +people +verb +determiner +noun +place .',
    '+determiner +adjective +noun was +place +time .',
    'did +person ask for +determiner +adjective +noun ?',
    '+time , +person +verb +determiner +noun and +determiner +adjective +noun .',
    '+person enjoyed +gerund and +gerund +place .',
    'why would the +people hide +determiner +noun +place ?',
    '+number +adjective +people +verb +determiner +noun .',
    '+person +mind that +determiner +noun was too +adjective .',
    'if you should see +person , show them +determiner +adjective +noun .',
    'don\'t put +determiner +noun +place , it is +adjective .',
    'there were +number +people +gerund +place +time .',
    'the +adjective +noun of +person is +adverb +adjective .',
    'how many +people are +gerund +place ?',
)]
BUCKETS = {'train': range(0, 80), 'dev': range(80, 90), 'test': range(90, 100)}  # by the sentence's checksum modulo 100


def sentence(split, rng):
  """A sentence that no other split contains.

  Args:
    split: 'train', 'dev' or 'test'.
    rng: NumPy Generator.

  Returns:
    str.
  """
  while True:
    words = [rng.choice(WORDS[item[1:]]).replace('-', ' ') if item[0] == '+' else item
             for item in PATTERNS[rng.integers(len(PATTERNS))]]
    text = re.sub(r'\ba (?=[aeio]|unus)', 'an ', re.sub(r' (?=[.,?])', '', ' '.join(words)))
    text = text[0].upper() + text[1:]
    if zlib.crc32(text.encode()) % 100 in BUCKETS[split]:
      return text
