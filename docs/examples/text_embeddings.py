"""Short texts: which of six customer services has the model that understands your customers?

Every customer service sorts messages into complaints, questions, orders and thanks. Three kinds of
customers write: formal letters, casual chats and telegrams; services of a bookshop and of a gas
supplier have each of them. A travel agency, whose goods no model knows, needs a model for its own
customers. The texts are made from small grammars, so nothing is fetched.

The public extractor counts groups of letters and keeps the leading directions of these counts.
Submitters' models work on words and share nothing with it.

Run it with `python docs/examples/text_embeddings.py` after `pip install scikit-learn`.
"""

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import jaxspec as js

NAMES = ["complaint", "question", "order", "thanks"]
GOODS = {
    "bookshop": ["novel", "atlas", "dictionary", "paperback", "comic", "cookbook", "calendar"],
    "gas supplier": ["boiler", "meter", "tariff", "pipeline", "heating", "invoice", "valve"],
    "travel agency": ["flight", "hotel", "cruise", "ticket", "suitcase", "ferry", "voucher"],
}
PHRASES = {
    "formal": [
        "i wish to express my dissatisfaction with the {}|to my regret the {} is defective|"
        "i must object to the condition of the {}|the {} fails to meet my expectations",
        "would you kindly inform me about the {}|i should like to enquire after the {}|"
        "may i ask for particulars of the {}|please advise me regarding the {}",
        "i hereby request delivery of the {}|i should like to purchase the {}|"
        "kindly reserve the {} in my name|please dispatch the {} at your convenience",
        "i am most grateful for the {}|please accept my gratitude for the {}|"
        "allow me to commend you on the {}|i was delighted to receive the {}",
    ],
    "casual": [
        "hey the {} is totally broken|ugh this {} sucks|so annoyed about my {} right now|"
        "my {} is a mess guys",
        "hi quick one what's up with the {}|any news on my {} ?|erm how does the {} work|"
        "do you guys have a {} left",
        "can i get a {} pls|gimme one {} thx in advance|wanna grab the {} today|"
        "i'll take the {} yeah",
        "you rock the {} is awesome|love love love the {}|wow best {} ever|"
        "cheers for the {} it's cool",
    ],
    "telegram": [
        "{} faulty stop refund stop|{} damaged stop unacceptable stop|return {} stop angry stop|"
        "{} wrong stop replace at once stop",
        "status {} query stop|cost of {} query stop|when {} query reply stop|"
        "{} available query stop",
        "send {} stop urgent stop|need {} by monday stop|ship {} stop pay on arrival stop|"
        "two {} wanted stop",
        "{} arrived stop splendid stop|{} perfect stop regards stop|bravo for {} stop|"
        "pleased with {} stop",
    ],
}
FILLERS = ["today", "again", "really", "friend", "here", "finally", "still", "twice", "please"]


def write(goods: str, style: str, count: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Return `count` messages about some goods in one style, and their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % len(NAMES))
    texts = []
    for label in labels:
        text = rng.choice(PHRASES[style][label].split("|")).format(rng.choice(GOODS[goods]))
        words = text.split()
        words[rng.integers(len(words))] = rng.choice(FILLERS)  # one word is lost
        texts.append(" ".join(words))
    return texts, labels


def main() -> None:
    """Make the market, ask it for three users, and compare with the truth."""
    # The public extractor is fitted to public, unlabelled texts of all kinds.
    public = [
        text
        for i, goods in enumerate(GOODS)
        for j, style in enumerate(PHRASES)
        for text in write(goods, style, 40, seed=100 + 10 * i + j)[0]
    ]
    letters = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), n_features=2**14)
    extractor = make_pipeline(letters, TruncatedSVD(32, random_state=0)).fit(public)

    def embed(texts: list[str]) -> np.ndarray:
        return extractor.transform(texts).astype(np.float32)

    probe = embed(public)
    space = js.Space.from_features("letters-svd32", probe, probe=probe)

    models, market = {}, js.Market(space)
    for i, goods in enumerate(("bookshop", "gas supplier")):
        for j, style in enumerate(PHRASES):
            texts, labels = write(goods, style, 200, seed=10 * i + j)
            words = TfidfVectorizer(ngram_range=(1, 2))
            model = make_pipeline(words, LogisticRegression(C=10.0)).fit(texts, labels)
            spec = js.specify(
                space,
                embed(texts),
                labels,
                class_names=NAMES,
                teacher=model.predict_proba(texts),
                probe_outputs=model.predict_proba(public),
                size=20,
            )
            owner = f"{goods}, {style}"
            models[owner] = model
            market = market.add({owner: spec})
    print(market)

    for seed, style in enumerate(PHRASES, start=1000):
        texts, labels = write("travel agency", style, 440, seed)
        mine, test = texts[:40], texts[40:]
        user = js.specify_user(space, embed(mine), labels[:40], class_names=NAMES)
        found = js.match(market, user)
        accuracy = {owner: model.score(test, labels[40:]) for owner, model in models.items()}
        chosen = found.top_k(1)[0][0]
        best = max(accuracy, key=accuracy.__getitem__)
        average = np.mean(list(accuracy.values()))
        print(
            f"user {style!r}: recommended {chosen!r}, right on {accuracy[chosen]:.1%} of "
            f"{len(test)} texts; best {best!r}, {accuracy[best]:.1%}; average {average:.1%}"
        )


if __name__ == "__main__":
    main()
