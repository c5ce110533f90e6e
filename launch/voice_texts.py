"""Sentences for synthetic voices to say: plain ones, put together of parts, so that there are many."""

# ruff: noqa: RUF001 - Russian has letters that look like Latin ones

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# By language, as ISO 639 names it: what a sentence is made of, one of each in this order.
PARTS: Mapping[str, Sequence[Sequence[str]]] = {
  "en": (
    (
      "This morning",
      "Late in the evening",
      "On the third of March",
      "After the long meeting",
      "As far as I know",
      "Without a word",
      "In seventeen minutes",
      "Just before the storm",
      "Twice a year",
      "To everyone's surprise",
    ),
    (
      "my younger sister",
      "the old fisherman",
      "a group of students",
      "Doctor Hughes",
      "the shop around the corner",
      "our new neighbour",
      "a quiet engineer",
      "the youngest judge",
      "Jonathan's bicycle",
      "the visiting choir",
    ),
    (
      "carried",
      "finally noticed",
      "asked about",
      "paid for",
      "photographed",
      "lost sight of",
      "is going to measure",
      "would rather avoid",
      "has never seen",
      "refused to sell",
    ),
    (
      "seven heavy baskets",
      "the wooden bridge",
      "a photograph of the valley",
      "two hundred and forty letters",
      "every question on the list",
      "the cheapest ticket to Boston",
      "an unusual kind of mushroom",
      "the queen's silver spoon",
      "what the radio had promised",
      "fresh bread and yellow cheese",
    ),
    (
      "behind the railway station",
      "while the children were asleep",
      "because the water was rising",
      "for exactly nine pounds",
      "without thinking twice",
      "and nobody could explain why",
      "although it was far too expensive",
      "between Thursday and Sunday",
      "with both hands",
      "before the lights went out",
    ),
  ),
  "de": (
    ("Heute Morgen", "Nach dem Essen", "Am vierten Juli", "Ohne lange zu fragen", "Zum Glück"),
    ("trug", "verkaufte", "suchte", "fotografierte", "bezahlte"),
    ("meine Schwester", "der alte Lehrer", "eine junge Ärztin", "unser Nachbar", "niemand"),
    ("drei schwere Koffer", "das grüne Fahrrad", "frische Brötchen", "den Schlüssel", "zwölf Bücher"),
    ("hinter dem Bahnhof", "für die Kinder", "bis zum späten Abend", "trotz des Regens", "mit großer Mühe"),
  ),
  "fr": (
    ("Ce matin", "Après le repas", "Le quatre juillet", "Sans hésiter", "Par chance"),
    ("ma sœur", "le vieux professeur", "une jeune femme", "notre voisin", "le facteur"),
    ("portait", "cherchait", "vendait", "photographiait", "payait"),
    ("trois lourdes valises", "le vélo vert", "du pain frais", "la clé du jardin", "douze livres"),
    ("derrière la gare", "pour les enfants", "jusqu'au soir", "malgré la pluie", "avec beaucoup de peine"),
  ),
  "es": (
    ("Esta mañana", "Después de comer", "El cuatro de julio", "Sin dudarlo", "Por suerte"),
    ("mi hermana", "el viejo maestro", "una joven doctora", "nuestro vecino", "el cartero"),
    ("llevaba", "buscaba", "vendió", "fotografió", "pagó"),
    ("tres maletas pesadas", "la bicicleta verde", "pan recién hecho", "la llave", "doce libros"),
    (
      "detrás de la estación",
      "para los niños",
      "hasta la noche",
      "a pesar de la lluvia",
      "con mucho cuidado",
    ),
  ),
  "it": (
    ("Questa mattina", "Dopo pranzo", "Il quattro luglio", "Senza esitare", "Per fortuna"),
    ("mia sorella", "il vecchio maestro", "una giovane donna", "il nostro vicino", "il postino"),
    ("portava", "cercava", "vendeva", "fotografava", "pagava"),
    ("tre valigie pesanti", "la bicicletta verde", "il pane fresco", "la chiave", "dodici libri"),
    ("dietro la stazione", "per i bambini", "fino a sera", "sotto la pioggia", "con molta fatica"),
  ),
  "ca": (
    ("Aquest matí", "Després de dinar", "El quatre de juliol", "Sense dubtar", "Per sort"),
    ("la meva germana", "el vell mestre", "una noia jove", "el nostre veí", "el carter"),
    ("portava", "buscava", "venia", "mirava", "pagava"),
    ("tres maletes", "la bicicleta verda", "el pa fresc", "la clau", "dotze llibres"),
    ("darrere l'estació", "per als nens", "fins al vespre", "sota la pluja", "amb molta cura"),
  ),
  "cs": (
    ("Dnes ráno", "Po obědě", "Čtvrtého července", "Bez váhání", "Naštěstí"),
    ("moje sestra", "starý učitel", "mladá lékařka", "náš soused", "paní ze školy"),
    ("nesla", "hledala", "prodala", "koupila", "viděla"),
    ("tři těžké kufry", "zelené kolo", "čerstvý chléb", "klíč od zahrady", "dvanáct knih"),
    ("za nádražím", "pro děti", "až do večera", "i přes déšť", "s velkou námahou"),
  ),
  "fi": (
    ("Tänä aamuna", "Ruoan jälkeen", "Heinäkuun neljäntenä", "Epäröimättä", "Onneksi"),
    ("sisareni", "vanha opettaja", "nuori lääkäri", "naapurimme", "postinkantaja"),
    ("kantoi", "etsi", "myi", "kuvasi", "maksoi"),
    ("kolme laukkua", "vihreän pyörän", "tuoretta leipää", "avaimen", "kaksitoista kirjaa"),
    ("aseman takana", "lapsille", "iltaan asti", "sateesta huolimatta", "suurella vaivalla"),
  ),
  "ru": (
    ("Сегодня утром", "После обеда", "Четвёртого июля", "Не раздумывая", "К счастью"),
    ("моя сестра", "старая учительница", "молодая женщина", "наша соседка", "хозяйка дома"),
    ("принесла", "искала", "продала", "купила", "увидела"),
    ("три тяжёлых чемодана", "зелёный велосипед", "свежий хлеб", "ключ от сада", "двенадцать книг"),
    ("за вокзалом", "для детей", "поздно вечером", "несмотря на дождь", "с большим трудом"),
  ),
  "ja": (
    ("今朝、", "昼ごはんの後で、", "七月四日に、", "雨の中、", "夜遅くまで、"),
    ("私の妹は", "年をとった先生は", "若い医者は", "隣の人は", "駅の前で友達は"),
    ("三つの重い荷物を", "緑の自転車を", "新しいパンを", "庭の鍵を", "十二冊の本を"),
    ("ゆっくり", "もう一度", "みんなのために", "とても静かに", "一人で"),
    ("探していました。", "運びました。", "売りました。", "写真に撮りました。", "忘れてしまいました。"),
  ),
}
# Languages that are written without spaces and end a sentence with a part of their own.
_UNSPACED = ("ja",)
# Letters that a sentence of about six seconds has; a syllable of Japanese has one.
_LETTERS, _UNSPACED_LETTERS = 80, 35


def sentences(language: str, rng: np.random.Generator) -> str:
  """A text that takes about six seconds to say: one sentence, or as many as that needs.

  Args:
    language: one of `PARTS`.
    rng: chooses the parts.
  """
  spaced = language not in _UNSPACED
  text = ""
  while len(text) < (_LETTERS if spaced else _UNSPACED_LETTERS):
    drawn = [part[rng.integers(len(part))] for part in PARTS[language]]
    text += f"{' ' if text else ''}{' '.join(drawn)}." if spaced else "".join(drawn)
  return text
