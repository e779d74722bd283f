"""The commonest words and the telling letters of languages written in Latin script, for `language` and `quality`."""

from __future__ import annotations

_WORDS = {
    "en": "the of and to in is that for it as was with be by on not he his but at are this have from or had an they "
    "which you were her all she there would their we him been has when who will more no if out so said what "
    "up its about into than them can only other new some could time these two may then do how my your did i",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus "
    "er hat dass sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder aber "
    "vor zur bis mehr durch man sein wurde sei ich wir kann gegen vom können schon wenn habe alle",
    "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont ou avec "
    "son aux d'un cette d'une ont ses mais comme on tout nous sa fait été aussi leur bien peut ces y deux "
    "elle être même sans je vous tous leurs entre doit lui très était l d n s c j qu",
    "es": "de la que el en y a los del se las por un para con no una su al lo como más pero sus le ya o este sí "
    "porque esta entre cuando muy sin sobre también me hasta hay donde quien desde todo nos durante todos uno "
    "les ni contra otros ese eso ante ellos e esto mí antes algunos qué unos yo otro es son tiene ha fue está "
    "ser",
    "pt": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem à "
    "seu sua ou ser quando muito há nos já está eu também só pelo pela até isso ela entre era depois sem "
    "mesmo aos ter seus quem nas me esse eles estão você tinha foram essa num nem suas meu às minha são todos",
    "it": "di e il la che in a per un è del non sono le della con i da una si dei al come più anche ha alla nel ma "
    "dal gli delle su lo questo se o ci degli nella suo cui sua essere dalla tra era loro molto hanno stato "
    "tutti quando suoi ad sulla ed ogni ai fra senza questa io mi ho può",
    "nl": "de van het een en in is dat op te zijn voor met die niet aan er om ook als dan maar door bij uit nog "
    "naar over ze hij was heeft worden wordt werd tot meer haar hun geen kan deze of wat al zou moet we ik je "
    "wel hebben onder waar zich zij heb ben had mijn dit",
    "sv": "och i att det som en på är av för med till den har de inte om ett han men var jag sig från vi så kan när "
    "år eller under man också ska nu hade efter vid utan där alla hon två mycket sin mot detta hans blir än "
    "något skall upp få dem sina vara bara skulle varje",
    "da": "og i at det er en til på som af for med de den har ikke et der var han men om jeg sig fra vi så kan når "
    "år eller også skal nu havde efter ved uden hvor alle hun to meget sin mod dette hans bliver end noget op "
    "få dem sine være kun ville hver hvad blev enhver",
    "no": "og i at det er en til på som av for med de den har ikke et der var han men om jeg seg fra vi så kan når "
    "år eller også skal nå hadde etter ved uten hvor alle hun to mye sin mot dette hans blir enn noe opp få "
    "dem sine være bare ville hver hva ble enhver",
    "fi": "ja on ei se että oli hän joka mutta myös ovat kun niin ole kuin sen jos tai olla vain nyt hänen mukaan "
    "jo mitä sekä en ne minä kanssa sitä vielä voi sitten kaikki koko mukaisesti tämä tämän joita jotka sille "
    "hänet olisi ollut jokaisella ilman hyvin täällä siitä",
    "pl": "i w na z do nie się że jest to o jak po co za od ale dla przez ma przy tym są tak czy oraz już jego być "
    "może było był tylko ich jako które który która lub także pod ze będzie jej tego bez nich mnie każdy "
    "jeszcze swoje kiedy więc nas wszystkie a u",
    "cs": "a v se na je že o s do z i k ve to ale za by pro jako po od si tak jsou které který byl jak nebo při co "
    "už bylo aby také byla jeho podle jen mezi více jsem kde má až než může ještě není své však před bez "
    "každý všichni mají jsme",
    "hu": "a az és hogy nem is egy ez meg csak van már el mint de még volt ha vagy azt ki lehet nagy kell után ezt "
    "mert majd sem lesz más amely minden itt úgy így aki nincs között olyan vagyok ami illetve alatt szerint "
    "joga van ember",
    "ro": "și de în a la cu să pe nu un o care din este mai ce se au pentru că ca sau fi prin al fost dar sunt lui "
    "am ale după cum fără toate are fie acest această orice unei unui lor ei ne le când toți trebuie foarte",
    "tr": "ve bir bu da de için ile o çok ne gibi daha en olarak kadar olan var ki sonra ama her ben mi değil "
    "olduğu göre yok diye şey ya iki ise veya kendi bütün bunu hiç nasıl benim içinde zaman oldu vardır "
    "herkes",
    "id": "yang dan di dengan untuk dari ini itu tidak dalam pada adalah ke akan juga atau oleh ada sebagai telah "
    "dapat karena mereka kami saya bisa sudah tersebut bahwa orang kita lebih setiap seperti harus hanya "
    "semua antara tanpa",
    "vi": "và của là có không được cho một các trong với người đã này những để khi ở về ra đến như cũng từ đó tôi "
    "mà lại vào làm nhiều phải anh nhưng bị thì chỉ còn trên mọi quyền hay đều rất sự theo",
}

STOP_WORDS: dict[str, frozenset[str]] = {code: frozenset(words.split()) for code, words in _WORDS.items()}
"""Of each language its commonest words, lower case."""

LETTERS: dict[str, str] = {
    "de": "äöüß",
    "fr": "éèêëàâîïôûùçœ",
    "es": "ñáéíóú¿¡",
    "pt": "ãõçáéíóúâêô",
    "it": "èàòùìé",
    "nl": "ëĳ",
    "sv": "åäö",
    "da": "æøå",
    "no": "æøå",
    "fi": "äö",
    "pl": "ąćęłńóśźż",
    "cs": "ěščřžýáíéůúťďň",
    "hu": "áéíóöőúüű",
    "ro": "ășțâîşţ",
    "tr": "çğıöşü",
    "vi": "ăâđêôơưạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ",
}
"""Letters that point to a language; one that several have counts for each of them in part."""
