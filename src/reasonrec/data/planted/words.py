"""The words that the shop's titles, names and descriptions are made of. All invented here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """One section of the shop: its genres, and the words its titles are made of."""

    name: str
    genres: tuple[str, ...]
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SECTIONS = (
    Section(
        "Mystery",
        ("Harbour Mystery", "Country House Mystery", "Courtroom Mystery", "Railway Mystery",
         "Art Theft Mystery", "Cold Case Mystery"),
        _words("Broken Crooked Locked Missing Poisoned Second Silent Stolen Unsigned Veiled "
               "Forged Hidden Last Seventh Wrong Patient"),
        _words("Alibi Cipher Confession Inkwell Key Ledger Letter Locket Portrait Suspect "
               "Telegram Verdict Waltz Witness Signature Umbrella"),
    ),
    Section(
        "Fantasy",
        ("Clockwork Fantasy", "Court Fantasy", "Forest Fantasy", "Sea Fantasy", "Kitchen Magic",
         "Dragon Saga"),
        _words("Amber Ashen Brazen Crownless Elder Gilded Hollow Moonlit Runed Sleeping Thorned "
               "Twilit Unbound Woven Wandering Wintering"),
        _words("Crown Dragon Enchanter Falcon Gate Grimoire Heir Kingdom Mirror Oath Raven Sceptre "
               "Spire Throne Tower Wyrm"),
    ),
    Section(
        "Science Fiction",
        ("First Contact", "Generation Ship", "Machine Minds", "Orbital Thriller", "Time Travel",
         "Colony Saga"),
        _words("Binary Burning Cold Distant Drifting Electric Infinite Magnetic Orbital Parallel "
               "Quantum Red Signal Solar Stellar Zero"),
        _words("Archive Beacon Colony Comet Engine Equation Horizon Machine Meridian Moon Orbit "
               "Protocol Satellite Star Transmission Vessel"),
    ),
    Section(
        "Historical",
        ("Age of Sail", "Silk Road Saga", "Castle Chronicle", "Guild and Market",
         "Revolution Story", "Family Chronicle"),
        _words("Bronze Carved Faithful Foreign Iron Ivory Loyal Marble Merchant Painted Royal "
               "Scarlet Sworn Threadbare Walled Weathered"),
        _words("Apprentice Banner Bridge Caravan Cathedral Chronicle Garrison Guild Loom Map "
               "Messenger Rampart Regiment Saddle Scribe Treaty"),
    ),
    Section(
        "Romance",
        ("Seaside Romance", "Village Romance", "City Romance", "Second Chances", "Holiday Romance",
         "Letters and Love"),
        _words("Accidental Borrowed Careless Unwritten Gentle Honest Late Pretend Reluctant Secret "
               "Stubborn Sudden Sweet Tangled Tender Unlikely"),
        _words("Bakery Bouquet Dance Engagement Heart Honeymoon Invitation Kiss Neighbour Postcard "
               "Promise Proposal Reunion Serenade Summer Wedding"),
    ),
    Section(
        "Adventure",
        ("Polar Adventure", "Desert Adventure", "Jungle Adventure", "Mountain Adventure",
         "Treasure Hunt", "Spy Adventure"),
        _words("Blind Buried Daring Fearless Frozen Furious High Lone Perilous Reckless Restless "
               "Savage Swift Uncharted Wild Windswept"),
        _words("Ascent Canyon Chase Compass Crossing Descent Expedition Fortune Glacier Idol "
               "Lagoon Passage Pursuit Summit Voyage Wreck"),
    ),
    Section(
        "Ghost Stories",
        ("Haunted House", "Gothic Tale", "Folk Horror", "Winter Ghosts", "Strange Towns",
         "Lighthouse Tale"),
        _words("Bone Candlelit Drowned Empty Glass Grey Hungry Ivied Midnight Nameless Pale Sunken "
               "Unlit Vacant Whispering Withered"),
        _words("Attic Bell Candle Corridor Cradle Doll Guest Harbour Lantern Mourner Nursery "
               "Orchard Piano Staircase Stranger Well"),
    ),
    Section(
        "Nature and Travel",
        ("River Journeys", "Garden Writing", "Bird Notes", "Island Travel", "Walking Tales",
         "Mountain Notes"),
        _words("Blue Early Far Green Heathered Long Mossy Northern Quiet Salt Slow Southern Stony "
               "Tidal Unmown Wide"),
        _words("Coastline Estuary Footpath Garden Hedgerow Island Meadow Migration Moorland "
               "Notebook Pasture River Shoreline Valley Walk Wren"),
    ),
)  # fmt: skip

PLACES = _words(
    "Aldermere Ashcombe Bellhaven Brackwater Calder Carrowmore Coldwell Corvane Duskerry "
    "Eastmarch Elmstead Fairhollow Fenwick Gallowmere Greywater Hallowby Harrowgate Hartsease "
    "Inverlay Kestrel Kingsbarrow Larkhill Lowmarsh Marrowby Merrowdale Northolt Oldcastle "
    "Orrin Pendle Quillby Ravensea Rookhope Saltmarsh Selwick Stonebridge Thornbury Umberley "
    "Velmoor Westering Yarrow"
)

FIRST_NAMES = _words(
    "Ada Agnes Albert Amos Beatrix Bruno Cecil Clara Dorothea Edmund Elsa Emeka Esther Felix "
    "Freya Gideon Greta Hana Harriet Hugo Ida Ingrid Iris Jonas Josef Kaito Leila Leonora "
    "Lucian Mabel Magnus Marisol Matilda Milo Nadia Nell Noor Olive Oskar Otis Petra Priya "
    "Quentin Rafael Rosalind Rufus Saskia Silas Sunniva Tobias Ursula Viola Wanda Yusuf Zelda"
)

LAST_NAMES = _words(
    "Abara Alder Ashdown Barlow Beckett Bellweather Birch Blackwood Calloway Carrow Castellane "
    "Crane Dacosta Dunmore Ellery Fairweather Falk Farrow Finch Galloway Hale Hargreave "
    "Hawthorne Holloway Ibarra Jessop Kingsley Kobayashi Lindqvist Lockwood Marchetti Marlowe "
    "Merriweather Nightingale Novak Okafor Oakes Pemberton Penrose Quill Ravensworth Rook "
    "Rosenthal Sandoval Sinclair Sparrow Sterling Tamsin Thackery Thorne Underhill Vance "
    "Vasquez Wetherby Whitlock Wren Yamada Yarwood"
)

HEROES = (
    "a lamplighter", "a retired judge", "an apprentice bookbinder", "an estranged sister",
    "a ship's cook", "a young cartographer", "the last beekeeper", "a widowed clockmaker",
    "a night porter", "an unlucky gambler", "a travelling piano tuner", "a stubborn librarian",
    "a runaway seamstress", "the ferryman's daughter", "a disgraced professor", "a quiet gardener",
    "an old schoolfriend", "a letter carrier", "an exiled musician", "a village doctor",
)  # fmt: skip

DEEDS = (
    "must choose between home and the truth", "follows a trail that everyone else gave up",
    "finds a door that was never there before", "returns after twenty years away",
    "inherits more trouble than money", "makes a promise that cannot be kept",
    "races the first snow", "learns who has been writing the letters",
    "bargains for one more year", "hides a guest whom nobody must see",
    "loses everything in a single night", "uncovers what the town agreed to forget",
    "falls in with the wrong company", "crosses a border that keeps moving",
    "trusts a stranger once too often", "sets out with a map that lies",
    "keeps a secret for the wrong person", "wagers all on one long journey",
    "wakes to find the harbour empty", "hears a voice from the old mill",
)  # fmt: skip

ERAS = ("1930s", "1950s", "1970s", "1990s", "2010s")
