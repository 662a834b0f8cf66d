"""Names of classes that published datasets give as numbers, codes or joined words.

Flowers-102's are the dataset's own list; countries are ISO 3166's in short English forms. Where a
dataset publishes none, or none that fits into a sentence, the words are ours.
"""

from __future__ import annotations

FLOWERS = tuple(
    """pink primrose|hard-leaved pocket orchid|canterbury bells|sweet pea|english marigold|
tiger lily|moon orchid|bird of paradise|monkshood|globe thistle|snapdragon|colt's foot|king protea|
spear thistle|yellow iris|globe flower|purple coneflower|peruvian lily|balloon flower|
giant white arum lily|fire lily|pincushion flower|fritillary|red ginger|grape hyacinth|corn poppy|
prince of wales feathers|stemless gentian|artichoke|sweet william|carnation|garden phlox|
love in the mist|mexican aster|alpine sea holly|ruby-lipped cattleya|cape flower|great masterwort|
siam tulip|lenten rose|barbeton daisy|daffodil|sword lily|poinsettia|bolero deep blue|wallflower|
marigold|buttercup|oxeye daisy|common dandelion|petunia|wild pansy|primula|sunflower|pelargonium|
bishop of llandaff|gaura|geranium|orange dahlia|pink-yellow dahlia|cautleya spicata|
japanese anemone|black-eyed susan|silverbush|californian poppy|osteospermum|spring crocus|
bearded iris|windflower|tree poppy|gazania|azalea|water lily|rose|thorn apple|morning glory|
passion flower|lotus|toad lily|anthurium|frangipani|clematis|hibiscus|columbine|desert-rose|
tree mallow|magnolia|cyclamen|watercress|canna lily|hippeastrum|bee balm|ball moss|foxglove|
bougainvillea|camellia|mallow|mexican petunia|bromelia|blanket flower|trumpet creeper|
blackberry lily""".replace("\n", "").split("|")
)
"""Of Flowers-102, for the labels 1 to 102."""

SIGNS = tuple(
    """speed limit of 20|speed limit of 30|speed limit of 50|speed limit of 60|speed limit of 70|
speed limit of 80|end of the speed limit of 80|speed limit of 100|speed limit of 120|
no overtaking|no overtaking by trucks|right of way at the next crossing|priority road|give way|stop|
no vehicles|no trucks|no entry|general danger|dangerous curve to the left|
dangerous curve to the right|double curve|bumpy road|slippery road|road narrows on the right|
road works|traffic lights|pedestrians|children crossing|bicycles crossing|ice or snow|
wild animals crossing|end of all limits|turn right ahead|turn left ahead|ahead only|
go straight or right|go straight or left|keep right|keep left|roundabout|end of no overtaking|
end of no overtaking by trucks""".replace("\n", "").split("|")
)
"""Meanings of the traffic signs of GTSRB, for the labels 0 to 42."""

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
FACES = ("angry", "disgusted", "afraid", "happy", "sad", "surprised", "neutral")
"""Expressions of FER2013, for the labels 0 to 6."""

TISSUE = ("lymph node", "lymph node with tumor tissue")
"""Of PatchCamelyon, for the labels 0 and 1."""

DISTANCES = (
    "a vehicle within 8 meters",
    "a vehicle within 20 meters",
    "a vehicle far away",
    "no vehicle",
)
"""Of the nearest vehicle in KITTI: up to 8 m, up to 20 m, further, none (Zhai et al. 2019)."""

LAND = {
    "AnnualCrop": "annual crop land",
    "Forest": "forest",
    "HerbaceousVegetation": "brushland or shrubland",
    "Highway": "highway or road",
    "Industrial": "industrial buildings",
    "Pasture": "pasture land",
    "PermanentCrop": "permanent crop land",
    "Residential": "residential buildings",
    "River": "river",
    "SeaLake": "sea or lake",
}
"""Of EuroSAT's folders."""

_COUNTRIES = """AD Andorra|AE United Arab Emirates|AF Afghanistan|AG Antigua and Barbuda|
AI Anguilla|AL Albania|AM Armenia|AO Angola|AQ Antarctica|AR Argentina|AS American Samoa|AT Austria|
AU Australia|AW Aruba|AX Aland Islands|AZ Azerbaijan|BA Bosnia and Herzegovina|BB Barbados|
BD Bangladesh|BE Belgium|BF Burkina Faso|BG Bulgaria|BH Bahrain|BI Burundi|BJ Benin|
BL Saint Barthelemy|BM Bermuda|BN Brunei|BO Bolivia|BQ Bonaire|BR Brazil|BS Bahamas|BT Bhutan|
BV Bouvet Island|BW Botswana|BY Belarus|BZ Belize|CA Canada|CC Cocos Islands|
CD Democratic Republic of the Congo|CF Central African Republic|CG Republic of the Congo|
CH Switzerland|CI Ivory Coast|CK Cook Islands|CL Chile|CM Cameroon|CN China|CO Colombia|
CR Costa Rica|CU Cuba|CV Cape Verde|CW Curacao|CX Christmas Island|CY Cyprus|CZ Czech Republic|
DE Germany|DJ Djibouti|DK Denmark|DM Dominica|DO Dominican Republic|DZ Algeria|EC Ecuador|
EE Estonia|EG Egypt|EH Western Sahara|ER Eritrea|ES Spain|ET Ethiopia|FI Finland|FJ Fiji|
FK Falkland Islands|FM Micronesia|FO Faroe Islands|FR France|GA Gabon|GB United Kingdom|GD Grenada|
GE Georgia|GF French Guiana|GG Guernsey|GH Ghana|GI Gibraltar|GL Greenland|GM Gambia|GN Guinea|
GP Guadeloupe|GQ Equatorial Guinea|GR Greece|GS South Georgia|GT Guatemala|GU Guam|
GW Guinea-Bissau|GY Guyana|HK Hong Kong|HM Heard and McDonald Islands|HN Honduras|HR Croatia|
HT Haiti|HU Hungary|ID Indonesia|IE Ireland|IL Israel|IM Isle of Man|IN India|
IO British Indian Ocean Territory|IQ Iraq|IR Iran|IS Iceland|IT Italy|JE Jersey|JM Jamaica|
JO Jordan|JP Japan|KE Kenya|KG Kyrgyzstan|KH Cambodia|KI Kiribati|KM Comoros|
KN Saint Kitts and Nevis|KP North Korea|KR South Korea|KW Kuwait|KY Cayman Islands|KZ Kazakhstan|
LA Laos|LB Lebanon|LC Saint Lucia|LI Liechtenstein|LK Sri Lanka|LR Liberia|LS Lesotho|LT Lithuania|
LU Luxembourg|LV Latvia|LY Libya|MA Morocco|MC Monaco|MD Moldova|ME Montenegro|MF Saint Martin|
MG Madagascar|MH Marshall Islands|MK North Macedonia|ML Mali|MM Myanmar|MN Mongolia|MO Macau|
MP Northern Mariana Islands|MQ Martinique|MR Mauritania|MS Montserrat|MT Malta|MU Mauritius|
MV Maldives|MW Malawi|MX Mexico|MY Malaysia|MZ Mozambique|NA Namibia|NC New Caledonia|NE Niger|
NF Norfolk Island|NG Nigeria|NI Nicaragua|NL Netherlands|NO Norway|NP Nepal|NR Nauru|NU Niue|
NZ New Zealand|OM Oman|PA Panama|PE Peru|PF French Polynesia|PG Papua New Guinea|PH Philippines|
PK Pakistan|PL Poland|PM Saint Pierre and Miquelon|PN Pitcairn Islands|PR Puerto Rico|PS Palestine|
PT Portugal|PW Palau|PY Paraguay|QA Qatar|RE Reunion|RO Romania|RS Serbia|RU Russia|RW Rwanda|
SA Saudi Arabia|SB Solomon Islands|SC Seychelles|SD Sudan|SE Sweden|SG Singapore|SH Saint Helena|
SI Slovenia|SJ Svalbard and Jan Mayen|SK Slovakia|SL Sierra Leone|SM San Marino|SN Senegal|
SO Somalia|SR Suriname|SS South Sudan|ST Sao Tome and Principe|SV El Salvador|SX Sint Maarten|
SY Syria|SZ Eswatini|TC Turks and Caicos Islands|TD Chad|TF French Southern Territories|TG Togo|
TH Thailand|TJ Tajikistan|TK Tokelau|TL East Timor|TM Turkmenistan|TN Tunisia|TO Tonga|TR Turkey|
TT Trinidad and Tobago|TV Tuvalu|TW Taiwan|TZ Tanzania|UA Ukraine|UG Uganda|
UM United States Minor Outlying Islands|US United States|UY Uruguay|UZ Uzbekistan|VA Vatican City|
VC Saint Vincent and the Grenadines|VE Venezuela|VG British Virgin Islands|
VI United States Virgin Islands|VN Vietnam|VU Vanuatu|WF Wallis and Futuna|WS Samoa|XK Kosovo|
YE Yemen|YT Mayotte|ZA South Africa|ZM Zambia|ZW Zimbabwe"""
COUNTRIES = {entry[:2]: entry[3:] for entry in _COUNTRIES.replace("\n", "").split("|")}
"""By their codes in two letters (XK is in use, though not ISO's)."""
