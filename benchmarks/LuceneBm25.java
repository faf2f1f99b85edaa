// Ranks passages with Lucene itself, as Anserini's SimpleSearcher does: EnglishAnalyzer, BM25, a bag of weighted terms.
// java -cp anserini-fatjar.jar LuceneBm25.java passages queries k1 b topk
// Both files hold one text a line in base64. Prints {"terms": [...], "hits": [[row, score], ...]} for each query.
import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.util.*;
import org.apache.lucene.analysis.TokenStream;
import org.apache.lucene.analysis.en.EnglishAnalyzer;
import org.apache.lucene.analysis.tokenattributes.CharTermAttribute;
import org.apache.lucene.document.*;
import org.apache.lucene.index.*;
import org.apache.lucene.search.*;
import org.apache.lucene.search.similarities.BM25Similarity;
import org.apache.lucene.store.*;

public class LuceneBm25 {
  static String text(String line) {
    return new String(Base64.getDecoder().decode(line), StandardCharsets.UTF_8);
  }

  public static void main(String[] args) throws Exception {
    EnglishAnalyzer analyzer = new EnglishAnalyzer();
    BM25Similarity similarity = new BM25Similarity(Float.parseFloat(args[2]), Float.parseFloat(args[3]));
    Directory directory = new ByteBuffersDirectory();
    IndexWriter writer = new IndexWriter(directory, new IndexWriterConfig(analyzer).setSimilarity(similarity));
    int row = 0;
    for (String line : Files.readAllLines(Paths.get(args[0]))) {
      Document passage = new Document();
      passage.add(new StoredField("row", row++));
      passage.add(new TextField("contents", text(line), Field.Store.NO));
      writer.addDocument(passage);
    }
    writer.forceMerge(1);
    writer.close();
    IndexSearcher searcher = new IndexSearcher(DirectoryReader.open(directory));
    searcher.setSimilarity(similarity);
    for (String line : Files.readAllLines(Paths.get(args[1]))) {
      Map<String, Integer> terms = new LinkedHashMap<>();
      try (TokenStream stream = analyzer.tokenStream("contents", text(line))) {
        CharTermAttribute term = stream.addAttribute(CharTermAttribute.class);
        stream.reset();
        while (stream.incrementToken()) terms.merge(term.toString(), 1, Integer::sum);
        stream.end();
      }
      BooleanQuery.Builder query = new BooleanQuery.Builder();
      terms.forEach((term, weight) -> query.add(
          new BoostQuery(new TermQuery(new Term("contents", term)), weight), BooleanClause.Occur.SHOULD));
      StringJoiner names = new StringJoiner(","), hits = new StringJoiner(",");
      for (String term : terms.keySet())
        names.add('"' + term.replace("\\", "\\\\").replace("\"", "\\\"") + '"');
      for (ScoreDoc hit : searcher.search(query.build(), Integer.parseInt(args[4])).scoreDocs)
        hits.add("[" + searcher.doc(hit.doc).getField("row").numericValue() + "," + hit.score + "]");
      System.out.println("{\"terms\":[" + names + "],\"hits\":[" + hits + "]}");
    }
  }
}
