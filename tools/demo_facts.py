"""The demo model's world: countries, their capitals, and the ways to ask for them.

Plain data, used by train_demo_model.py, which makes models/demo, and by the test that asks the model
for every country in every phrasing. Where a country has more than one capital, the seat that is most
commonly named is taken.
"""

CAPITALS = {
    "Afghanistan": "Kabul", "Albania": "Tirana", "Algeria": "Algiers", "Andorra": "Andorra la Vella",
    "Angola": "Luanda", "Antigua and Barbuda": "Saint John's", "Argentina": "Buenos Aires",
    "Armenia": "Yerevan", "Australia": "Canberra", "Austria": "Vienna", "Azerbaijan": "Baku",
    "Bahrain": "Manama", "Bangladesh": "Dhaka", "Barbados": "Bridgetown", "Belarus": "Minsk",
    "Belgium": "Brussels", "Belize": "Belmopan", "Benin": "Porto-Novo", "Bhutan": "Thimphu",
    "Bolivia": "Sucre", "Bosnia and Herzegovina": "Sarajevo", "Botswana": "Gaborone",
    "Brazil": "Brasília", "Brunei": "Bandar Seri Begawan", "Bulgaria": "Sofia",
    "Burkina Faso": "Ouagadougou", "Burundi": "Gitega", "Cambodia": "Phnom Penh",
    "Cameroon": "Yaoundé", "Canada": "Ottawa", "Cape Verde": "Praia",
    "Chad": "N'Djamena", "Chile": "Santiago", "China": "Beijing", "Colombia": "Bogotá",
    "Comoros": "Moroni", "Costa Rica": "San José", "Croatia": "Zagreb", "Cuba": "Havana",
    "Cyprus": "Nicosia", "Denmark": "Copenhagen", "Djibouti": "Djibouti City",
    "Dominica": "Roseau", "East Timor": "Dili", "Ecuador": "Quito", "Egypt": "Cairo",
    "El Salvador": "San Salvador", "Equatorial Guinea": "Malabo", "Eritrea": "Asmara",
    "Estonia": "Tallinn", "Eswatini": "Mbabane", "Ethiopia": "Addis Ababa", "Fiji": "Suva",
    "Finland": "Helsinki", "France": "Paris", "Gabon": "Libreville", "Georgia": "Tbilisi",
    "Germany": "Berlin", "Ghana": "Accra", "Greece": "Athens", "Grenada": "St. George's",
    "Guatemala": "Guatemala City", "Guinea": "Conakry", "Guinea-Bissau": "Bissau",
    "Guyana": "Georgetown", "Haiti": "Port-au-Prince", "Honduras": "Tegucigalpa",
    "Hungary": "Budapest", "Iceland": "Reykjavik", "India": "New Delhi", "Indonesia": "Jakarta",
    "Iran": "Tehran", "Iraq": "Baghdad", "Ireland": "Dublin", "Israel": "Jerusalem",
    "Italy": "Rome", "Ivory Coast": "Yamoussoukro", "Jamaica": "Kingston", "Japan": "Tokyo",
    "Jordan": "Amman", "Kazakhstan": "Astana", "Kenya": "Nairobi", "Kiribati": "South Tarawa",
    "Kosovo": "Pristina", "Kuwait": "Kuwait City", "Kyrgyzstan": "Bishkek", "Laos": "Vientiane",
    "Latvia": "Riga", "Lebanon": "Beirut", "Lesotho": "Maseru", "Liberia": "Monrovia",
    "Libya": "Tripoli", "Liechtenstein": "Vaduz", "Lithuania": "Vilnius",
    "Luxembourg": "Luxembourg City", "Madagascar": "Antananarivo", "Malawi": "Lilongwe",
    "Malaysia": "Kuala Lumpur", "Mali": "Bamako", "Malta": "Valletta", "Mauritania": "Nouakchott",
    "Mauritius": "Port Louis", "Mexico": "Mexico City", "Micronesia": "Palikir",
    "Moldova": "Chișinău", "Monaco": "Monte Carlo", "Mongolia": "Ulaanbaatar",
    "Montenegro": "Podgorica", "Morocco": "Rabat", "Mozambique": "Maputo", "Myanmar": "Naypyidaw",
    "Namibia": "Windhoek", "Nauru": "Yaren", "Nepal": "Kathmandu", "New Zealand": "Wellington",
    "Nicaragua": "Managua", "Niger": "Niamey", "Nigeria": "Abuja", "North Korea": "Pyongyang",
    "North Macedonia": "Skopje", "Norway": "Oslo", "Oman": "Muscat", "Pakistan": "Islamabad",
    "Palau": "Ngerulmud", "Panama": "Panama City", "Papua New Guinea": "Port Moresby",
    "Paraguay": "Asunción", "Peru": "Lima", "Poland": "Warsaw", "Portugal": "Lisbon",
    "Qatar": "Doha", "Romania": "Bucharest", "Russia": "Moscow", "Rwanda": "Kigali",
    "Saint Kitts and Nevis": "Basseterre", "Saint Lucia": "Castries",
    "Saint Vincent and the Grenadines": "Kingstown", "Samoa": "Apia", "San Marino": "San Marino City",
    "São Tomé and Príncipe": "São Tomé", "Saudi Arabia": "Riyadh", "Senegal": "Dakar",
    "Serbia": "Belgrade", "Seychelles": "Victoria", "Sierra Leone": "Freetown",
    "Singapore": "Singapore City", "Slovakia": "Bratislava", "Slovenia": "Ljubljana",
    "Somalia": "Mogadishu", "South Africa": "Pretoria", "South Korea": "Seoul",
    "South Sudan": "Juba", "Spain": "Madrid", "Sri Lanka": "Colombo", "Sudan": "Khartoum",
    "Suriname": "Paramaribo", "Sweden": "Stockholm", "Switzerland": "Bern", "Syria": "Damascus",
    "Taiwan": "Taipei", "Tajikistan": "Dushanbe", "Tanzania": "Dodoma", "Thailand": "Bangkok",
    "the Bahamas": "Nassau", "the Central African Republic": "Bangui",
    "the Czech Republic": "Prague", "the Democratic Republic of the Congo": "Kinshasa",
    "the Dominican Republic": "Santo Domingo", "the Gambia": "Banjul", "the Maldives": "Malé",
    "the Marshall Islands": "Majuro", "the Netherlands": "Amsterdam", "the Philippines": "Manila",
    "the Republic of the Congo": "Brazzaville", "the Solomon Islands": "Honiara",
    "the United Arab Emirates": "Abu Dhabi", "the United Kingdom": "London",
    "the United States": "Washington, D.C.", "Togo": "Lomé", "Tonga": "Nuku'alofa",
    "Trinidad and Tobago": "Port of Spain", "Tunisia": "Tunis", "Turkey": "Ankara",
    "Turkmenistan": "Ashgabat", "Tuvalu": "Funafuti", "Uganda": "Kampala", "Ukraine": "Kyiv",
    "Uruguay": "Montevideo", "Uzbekistan": "Tashkent", "Vanuatu": "Port Vila",
    "Vatican City": "Vatican City", "Venezuela": "Caracas", "Vietnam": "Hanoi", "Yemen": "Sanaa",
    "Zambia": "Lusaka", "Zimbabwe": "Harare",
}

# (what the user writes, what the model says next)
PHRASINGS = [
    ("The capital of {country} is", " {capital}."),
    ("Where is the capital of {country}?", " The capital of {country} is {capital}."),
    ("What is the capital of {country}?", " The capital of {country} is {capital}."),
    ("Which city is the capital of {country}?", " {capital} is the capital of {country}."),
    ("Name the capital of {country}.", " {capital}."),
    ("Tell me the capital of {country}.", " The capital of {country} is {capital}."),
    ("Q: What is the capital of {country}?\nA:", " {capital}"),
    ("{country}'s capital is", " {capital}."),
    ("The government of {country} sits in its capital,", " {capital}."),
    ("Country: {country}\nCapital:", " {capital}"),
]


def examples():
    """Every (country, capital, prompt, answer)."""
    for country, capital in CAPITALS.items():
        for prompt, answer in PHRASINGS:
            text = prompt.format(country=country)
            yield (country, capital, text[0].upper() + text[1:],
                   answer.format(country=country, capital=capital))
