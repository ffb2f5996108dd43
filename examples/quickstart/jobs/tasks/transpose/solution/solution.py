def transpose(rows):
    return [[row[column] for row in rows] for column in range(len(rows[0]))]
