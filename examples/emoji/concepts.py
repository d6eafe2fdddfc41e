"""Which emoji the teacher learns: balanced, distinct, the 64 of the sample grid among them.

An hour on two CPU cores is enough for about 300 concepts, not for all 1,900 emoji, and a hundred
nearly equal faces would teach a small model to draw their average. So the concepts are picked by
hand. Names are emojilib's first keywords with blanks for underscores.
"""

from __future__ import annotations

STYLES = ("noto", "twemoji")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for line in text.strip().splitlines() for name in line.split("|"))


GRID = _names("""
    grinning face|face with tears of joy|smiling face with sunglasses|thinking face|angry face
    loudly crying face|sleeping face|cowboy hat face
    skull|ghost|alien|robot|red heart|broken heart|blue heart|fire
    cat face|dog face|panda|fox|lion|frog|unicorn|penguin
    octopus|tropical fish|butterfly|honeybee|snail|turtle|elephant|owl
    red apple|banana|pizza|hamburger|strawberry|watermelon|doughnut|birthday cake
    rocket|airplane|automobile|bicycle|sailboat|house|castle|mountain
    sun|crescent moon|rainbow|snowflake|christmas tree|cactus|sunflower|mushroom
    soccer ball|guitar|camera|light bulb|key|crown|trophy|thumbs up
""")
"""Eight rows of eight; even rows are drawn in the first style, odd rows in the second."""

CHOSEN = GRID + _names("""
    smiling face with heart eyes|winking face|nerd face|face blowing a kiss|upside down face
    money mouth face|zany face|face with medical mask|nauseated face|hot face|cold face
    exploding head|partying face|face screaming in fear|pleading face|smiling face with halo
    smiling face with horns|neutral face|face with symbols on mouth|zipper mouth face
    hugging face|clown face|pile of poo|alien monster|ogre|green heart|yellow heart|purple heart
    black heart|love letter|mouse face|cow face|tiger face|rabbit face|horse face|monkey face
    pig face|bear|koala|giraffe|zebra|camel|bat|whale|dolphin|shark|crab|lobster|shrimp|jellyfish
    rooster|baby chick|duck|flamingo|parrot|peacock|lady beetle|ant|spider|dragon face|snake
    t rex|tulip|rose|cherry blossom|evergreen tree|palm tree|maple leaf|four leaf clover
    potted plant|tomato|grapes|lemon|pineapple|green apple|pear|peach|cherries|kiwi fruit
    blueberries|avocado|carrot|ear of corn|broccoli|eggplant|hot pepper|hot dog|taco|french fries
    croissant|cheese wedge|pancakes|popcorn|sushi|sandwich|ice cream|cookie|chocolate bar|candy
    lollipop|cupcake|honey pot|hot beverage|beer mug|wine glass|tropical drink|bubble tea|bus
    police car|tractor|locomotive|motor scooter|helicopter|flying saucer|anchor
    vertical traffic light|tent|volcano|desert island|ferris wheel|tokyo tower
    globe showing americas|full moon|star|ringed planet|cloud|umbrella|snowman|high voltage
    droplet|water wave|sun behind cloud|cloud with rain|jack o lantern|wrapped gift|balloon
    party popper|sparkles|basketball|american football|baseball|tennis|volleyball|pool 8 ball
    1st place medal|direct hit|game die|puzzle piece|teddy bear|kite|crystal ball|artist palette
    violin|trumpet|drum|headphone|microphone|musical note|bell|television|laptop|floppy disk
    battery|telephone|mobile phone|magnifying glass tilted left|candle|books|open book|scroll
    money bag|envelope|package|pencil|scissors|locked|hammer|axe|magnet|gear|shield|bomb
    microscope|test tube|dna|pill|hourglass done|alarm clock|door|toilet|bucket|moai|t shirt
    jeans|dress|high heeled shoe|top hat|backpack|ring|gem stone|socks|graduation cap|eyes|nose
    brain|tooth|bone|flexed biceps|victory hand|waving hand|footprints|santa claus|astronaut
    ninja|warning|no entry|radioactive|recycling symbol|yin yang|check mark button|cross mark
    question mark|hundred points|red circle|blue circle|green square|large blue diamond
""")
"""What the teacher learns."""
